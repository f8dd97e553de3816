//! Who leads: a lease in `prewarm_leases`, taken, renewed and handed over by compare-and-set.
//!
//! No two clocks are compared. A standby takes the lease when its revision has not moved for the
//! lease time *on the standby's own clock*; the leader stops acting half that time after it sent the
//! last renewal that was performed, *on its own*. So there is never more than one that may act as
//! long as no clock runs at twice the speed of another. The revision is the fence: a write that was
//! held up somewhere is refused when the lease has moved on.
//!
//! This decides only; the shell reads and writes the bucket, and asks [`Lease::may_act`] before
//! every effect of the dispatcher.

use std::time::Duration;

/// Time without a renewal after which another may lead, unless a setting says otherwise.
pub const DEFAULT_LEASE: Duration = Duration::from_secs(5);
/// Renewals in a lease time: a leader loses its place after missing the answers to five of them.
pub const RENEWALS_PER_LEASE: u32 = 10;

/// A reading of a clock that never runs backwards and goes on while the machine sleeps
/// (`CLOCK_BOOTTIME`, clock_getres(2)): the time since any fixed moment.
///
/// `CLOCK_MONOTONIC` will not do: a leader that was suspended would wake up believing that its lease
/// is as fresh as it was when it fell asleep.
pub type Uptime = Duration;

/// What the bucket holds under the lease's key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// The key's revision; a deletion marker has one too.
    pub revision: u64,
    /// Who leads; `None` after a hand-over or a deletion.
    pub holder: Option<String>,
}

/// What can happen. The shell answers every [`Effect::Look`] and [`Effect::Write`] exactly once,
/// within a tenth of the lease time ([`Lease::request_limit`]).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Input {
    /// The answer to `Look`: the entry, or none if the key was never written.
    Looked(Option<Entry>),
    /// `Look` was not answered.
    NotLooked,
    /// `Write` was performed.
    Written {
        /// The key's revision now.
        revision: u64,
    },
    /// `Write` was refused: the key has another revision than expected.
    Refused,
    /// Nobody knows whether `Write` was performed, or will be.
    Unclear,
    /// SIGTERM: hand over and end.
    Stop,
    /// Time passed.
    Tick,
}

/// What the shell does, in order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Read the entry.
    Look,
    /// Write the entry if its revision is the expected one (0: if it was never written).
    Write {
        /// The revision that is to be replaced.
        expected: u64,
        /// Who leads from now on; `None` hands over.
        holder: Option<String>,
    },
    /// Rebuild the dispatcher from the broker and act.
    Lead,
    /// Stop acting: begin no further effect, forget the dispatcher's state, and let what is on its
    /// way to the broker come to an end before anything that follows this.
    Yield,
    /// After `Stop`: nothing more is asked for.
    Stopped,
}

/// A request to the bucket that has not been answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Asked {
    Look,
    Write {
        sent_at: Uptime,
        expected: u64,
    },
    /// The write that says that nobody leads.
    HandOver,
}

impl Asked {
    const fn is_look(&mut self) -> bool {
        matches!(self, Self::Look)
    }

    const fn is_write(&mut self) -> bool {
        matches!(self, Self::Write { .. } | Self::HandOver)
    }
}

/// What to ask the bucket next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Next {
    Look,
    /// Claim or renew the lease over this revision.
    Write(u64),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// Another leads, or nobody: the revision seen last, and since when it has been seen.
    Standby(Option<(u64, Uptime)>),
    /// This process leads until then.
    Leading(Uptime),
    /// After `Stop`: the lease may be ours and is to be handed over.
    Leaving,
    /// The lease is not ours any more, as far as can be known.
    Left,
    Stopped,
}

/// One process that leads or could.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Lease {
    instance: String,
    lease: Duration,
    phase: Phase,
    asked: Option<Asked>,
    next: Next,
    /// When `next` is asked, unless a request is open.
    next_at: Uptime,
}

impl Lease {
    /// A process that has just started; the first input of any kind makes it look. `instance` is
    /// never used by another process or by a restart of this one.
    #[must_use]
    pub const fn new(instance: String, lease: Duration, now: Uptime) -> Self {
        Self {
            instance,
            lease,
            phase: Phase::Standby(None),
            asked: None,
            next: Next::Look,
            next_at: now,
        }
    }

    /// Takes in what happened and adds what has to be done, in order.
    pub fn handle(&mut self, now: Uptime, input: Input, effects: &mut Vec<Effect>) {
        match input {
            Input::Looked(entry) => {
                if self.answered(Asked::is_look).is_some() {
                    self.looked(now, entry);
                }
            }
            Input::NotLooked => {
                if self.answered(Asked::is_look).is_some() {
                    self.next_at = now + self.every();
                    self.give_up_leaving();
                }
            }
            Input::Written { revision } => match self.answered(Asked::is_write) {
                Some(Asked::Write { sent_at, .. }) => self.ours(now, sent_at, revision, effects),
                Some(Asked::HandOver) => self.phase = Phase::Left,
                Some(Asked::Look) | None => {}
            },
            Input::Refused => {
                if self.answered(Asked::is_write).is_some() {
                    self.next = Next::Look;
                    self.next_at = now;
                }
            }
            Input::Unclear => match self.answered(Asked::is_write) {
                // If it was performed, the repeat is refused, and the look that follows tells.
                Some(Asked::Write { sent_at, expected }) => {
                    self.next = Next::Write(expected);
                    self.next_at = sent_at + self.every();
                }
                Some(Asked::HandOver) => self.phase = Phase::Left,
                Some(Asked::Look) | None => {}
            },
            Input::Stop => self.stop(effects),
            Input::Tick => {}
        }
        self.pass_time(now, effects);
    }

    /// When a `Tick` is needed at the latest; `None` while only an answer can change anything.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Uptime> {
        let asks_at = self.asked.is_none().then_some(self.next_at);
        match self.phase {
            Phase::Standby(_) => asks_at,
            Phase::Leading(until) => Some(asks_at.map_or(until, |at| at.min(until))),
            Phase::Leaving | Phase::Left | Phase::Stopped => None,
        }
    }

    /// Whether an effect of the dispatcher may be begun now. An effect that was begun has to reach
    /// the broker within half the lease time, or not at all.
    #[must_use]
    pub fn may_act(&self, now: Uptime) -> bool {
        matches!(self.phase, Phase::Leading(until) if now < until)
    }

    /// Until when effects may be begun; `None` while another leads, or nobody.
    #[must_use]
    pub const fn acts_until(&self) -> Option<Uptime> {
        match self.phase {
            Phase::Leading(until) => Some(until),
            Phase::Standby(_) | Phase::Leaving | Phase::Left | Phase::Stopped => None,
        }
    }

    /// Whether the open request is a look at the bucket.
    #[must_use]
    pub const fn is_looking(&self) -> bool {
        matches!(self.asked, Some(Asked::Look))
    }

    /// How long the shell waits for an answer of the bucket.
    #[must_use]
    pub fn request_limit(&self) -> Duration {
        self.every()
    }

    fn every(&self) -> Duration {
        self.lease / RENEWALS_PER_LEASE
    }

    /// Takes the open request out, if this is an answer to it.
    fn answered(&mut self, is_answer: impl FnOnce(&mut Asked) -> bool) -> Option<Asked> {
        self.asked.take_if(is_answer)
    }

    /// Whoever cannot reach the bucket leaves without a hand-over: the others wait the lease out.
    fn give_up_leaving(&mut self) {
        if self.phase == Phase::Leaving {
            self.phase = Phase::Left;
        }
    }

    fn looked(&mut self, now: Uptime, entry: Option<Entry>) {
        let (revision, holder) = match entry {
            Some(entry) => (entry.revision, entry.holder),
            None => (0, None),
        };
        let is_ours = holder.as_deref() == Some(&self.instance);
        if holder.is_none() || is_ours {
            // Nobody's, or written by us without our knowing: nobody has led since.
            if !is_ours {
                self.give_up_leaving();
            }
            self.next = Next::Write(revision);
            self.next_at = now;
            return;
        }
        match &mut self.phase {
            Phase::Standby(Some((seen, since))) if *seen == revision => {
                if now >= *since + self.lease {
                    self.next = Next::Write(revision);
                    self.next_at = now;
                    return;
                }
            }
            Phase::Standby(seen) => *seen = Some((revision, now)),
            // Somebody took the lease: it was not renewed for a whole lease time, by their clock.
            Phase::Leading(until) => *until = now,
            Phase::Leaving => self.phase = Phase::Left,
            Phase::Left | Phase::Stopped => {}
        }
        self.next = Next::Look;
        self.next_at = now + self.every();
    }

    /// A write of ours was performed: it counts from when it was sent.
    fn ours(&mut self, now: Uptime, sent_at: Uptime, revision: u64, effects: &mut Vec<Effect>) {
        self.next = Next::Write(revision);
        self.next_at = sent_at + self.every();
        let until = sent_at + self.lease / 2;
        match &mut self.phase {
            Phase::Standby(_) if now < until => {
                self.phase = Phase::Leading(until);
                effects.push(Effect::Lead);
            }
            Phase::Leading(before) => *before = until.max(*before),
            Phase::Standby(_) | Phase::Leaving | Phase::Left | Phase::Stopped => {}
        }
    }

    fn stop(&mut self, effects: &mut Vec<Effect>) {
        match self.phase {
            Phase::Leading(_) => {
                effects.push(Effect::Yield);
                self.phase = Phase::Leaving;
            }
            Phase::Standby(_) if matches!(self.asked, Some(Asked::Write { .. })) => {
                self.phase = Phase::Leaving;
            }
            Phase::Standby(_) => self.phase = Phase::Left,
            Phase::Leaving | Phase::Left | Phase::Stopped => {}
        }
    }

    fn pass_time(&mut self, now: Uptime, effects: &mut Vec<Effect>) {
        match self.phase {
            Phase::Leading(until) if until <= now => {
                self.phase = Phase::Standby(None);
                effects.push(Effect::Yield);
            }
            Phase::Left => {
                self.phase = Phase::Stopped;
                effects.push(Effect::Stopped);
            }
            Phase::Leading(_) | Phase::Standby(_) | Phase::Leaving | Phase::Stopped => {}
        }
        let asks = match self.phase {
            Phase::Standby(_) | Phase::Leading(_) => self.next_at <= now,
            Phase::Leaving => true,
            Phase::Left | Phase::Stopped => false,
        };
        if asks && self.asked.is_none() {
            self.ask(now, effects);
        }
    }

    fn ask(&mut self, now: Uptime, effects: &mut Vec<Effect>) {
        let expected = match self.next {
            Next::Look => {
                self.asked = Some(Asked::Look);
                effects.push(Effect::Look);
                return;
            }
            Next::Write(expected) => expected,
        };
        let (asked, holder) = if self.phase == Phase::Leaving {
            (Asked::HandOver, None)
        } else {
            let sent_at = now;
            (
                Asked::Write { sent_at, expected },
                Some(self.instance.clone()),
            )
        };
        self.asked = Some(asked);
        effects.push(Effect::Write { expected, holder });
    }
}
