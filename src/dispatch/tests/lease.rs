//! Leadership: at most one may act, somebody soon does.

use std::time::Duration;

use crate::dispatch::lease::{DEFAULT_LEASE, Effect, Entry, Input, Lease};

fn at(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn entry(revision: u64, holder: &str) -> Input {
    Input::Looked(Some(Entry {
        revision,
        holder: Some(holder.to_owned()),
    }))
}

fn write(expected: u64, holder: &str) -> Effect {
    Effect::Write {
        expected,
        holder: Some(holder.to_owned()),
    }
}

fn hand_over(expected: u64) -> Effect {
    Effect::Write {
        expected,
        holder: None,
    }
}

struct Process {
    lease: Lease,
}

impl Process {
    fn new(name: &str) -> Self {
        Self {
            lease: Lease::new(name.to_owned(), DEFAULT_LEASE, Duration::ZERO),
        }
    }

    fn tell(&mut self, millis: u64, input: Input) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.lease.handle(at(millis), input, &mut effects);
        effects
    }

    /// One that leads since 20 ms, by a write sent at 10 ms.
    fn leading() -> Self {
        let mut a = Self::new("a");
        assert_eq!(a.tell(0, Input::Tick), [Effect::Look]);
        assert_eq!(a.tell(10, Input::Looked(None)), [write(0, "a")]);
        assert_eq!(a.tell(20, Input::Written { revision: 1 }), [Effect::Lead]);
        a
    }
}

#[test]
fn a_lease_never_written_is_taken_at_once() {
    let a = Process::leading();
    assert!(a.lease.may_act(at(20)));
}

#[test]
fn a_leader_renews_ten_times_in_a_lease() {
    let mut a = Process::leading();
    assert_eq!(a.lease.next_deadline(), Some(at(510)));
    assert_eq!(a.tell(510, Input::Tick), [write(1, "a")]);
    assert_eq!(a.tell(520, Input::Written { revision: 2 }), []);
    assert_eq!(a.tell(1_010, Input::Tick), [write(2, "a")]);
}

#[test]
fn a_leader_stops_half_a_lease_after_it_sent_its_last_renewal() {
    let mut a = Process::leading();
    a.tell(510, Input::Tick);
    assert!(a.lease.may_act(at(2_509)));
    assert!(!a.lease.may_act(at(2_510)));
    assert_eq!(a.lease.next_deadline(), Some(at(2_510)));
    assert_eq!(a.tell(2_510, Input::Tick), [Effect::Yield]);
}

#[test]
fn a_renewal_counts_from_when_it_was_sent() {
    let mut a = Process::leading();
    a.tell(510, Input::Tick);
    assert_eq!(
        a.tell(2_000, Input::Written { revision: 2 }),
        [write(2, "a")]
    );
    assert!(a.lease.may_act(at(3_009)) && !a.lease.may_act(at(3_010)));
}

#[test]
fn a_claim_answered_too_late_is_no_leadership_but_is_made_again() {
    let mut a = Process::new("a");
    a.tell(0, Input::Tick);
    a.tell(10, Input::Looked(None));
    let late = a.tell(2_510, Input::Written { revision: 1 });
    assert_eq!(late, [write(1, "a")]);
    assert!(!a.lease.may_act(at(2_510)));
    assert_eq!(
        a.tell(2_520, Input::Written { revision: 2 }),
        [Effect::Lead]
    );
}

#[test]
fn a_standby_takes_a_lease_that_has_not_moved_for_its_whole_time() {
    let mut b = Process::new("b");
    b.tell(0, Input::Tick);
    b.tell(100, entry(7, "a"));
    let mut now = 600;
    while now < 5_100 {
        assert_eq!(b.tell(now, Input::Tick), [Effect::Look], "at {now} ms");
        assert_eq!(b.tell(now, entry(7, "a")), [], "at {now} ms");
        now += 500;
    }
    assert_eq!(b.tell(now, Input::Tick), [Effect::Look]);
    assert_eq!(b.tell(now, entry(7, "a")), [write(7, "b")]);
    assert_eq!(b.tell(now, Input::Written { revision: 8 }), [Effect::Lead]);
}

#[test]
fn a_standby_never_takes_a_lease_that_moves() {
    let mut b = Process::new("b");
    b.tell(0, Input::Tick);
    for step in 0..100 {
        let now = 10 + step * 500;
        assert_eq!(b.tell(now, entry(1 + step / 9, "a")), [], "at {now} ms");
        b.tell(now + 500, Input::Tick);
    }
}

#[test]
fn a_standby_that_loses_the_race_waits_again() {
    let mut b = Process::new("b");
    b.tell(0, Input::Tick);
    b.tell(0, entry(7, "a"));
    b.tell(5_000, Input::Tick);
    assert_eq!(b.tell(5_000, entry(7, "a")), [write(7, "b")]);
    assert_eq!(b.tell(5_010, Input::Refused), [Effect::Look]);
    assert_eq!(b.tell(5_020, entry(8, "c")), []);
    b.tell(5_520, Input::Tick);
    assert_eq!(b.tell(5_520, entry(8, "c")), []);
}

#[test]
fn sigterm_hands_over_at_once() {
    let mut a = Process::leading();
    assert_eq!(a.tell(30, Input::Stop), [Effect::Yield, hand_over(1)]);
    assert!(!a.lease.may_act(at(30)));
    assert_eq!(
        a.tell(40, Input::Written { revision: 2 }),
        [Effect::Stopped]
    );
    let mut b = Process::new("b");
    b.tell(0, Input::Tick);
    let free = Input::Looked(Some(Entry {
        revision: 2,
        holder: None,
    }));
    assert_eq!(b.tell(50, free), [write(2, "b")]);
}

#[test]
fn sigterm_during_a_renewal_hands_over_what_it_leaves() {
    let mut a = Process::leading();
    a.tell(510, Input::Tick);
    assert_eq!(a.tell(520, Input::Stop), [Effect::Yield]);
    let answer = a.tell(530, Input::Written { revision: 2 });
    assert_eq!(answer, [hand_over(2)]);
    assert_eq!(
        a.tell(540, Input::Written { revision: 3 }),
        [Effect::Stopped]
    );
}

#[test]
fn sigterm_after_an_unclear_renewal_finds_out_what_to_hand_over() {
    let mut a = Process::leading();
    a.tell(510, Input::Tick);
    assert_eq!(a.tell(520, Input::Stop), [Effect::Yield]);
    assert_eq!(a.tell(1_010, Input::Unclear), [hand_over(1)]);
    assert_eq!(a.tell(1_020, Input::Refused), [Effect::Look]);
    assert_eq!(a.tell(1_030, entry(2, "a")), [hand_over(2)]);
    assert_eq!(a.tell(1_530, Input::Unclear), [Effect::Stopped]);
}

#[test]
fn sigterm_to_a_standby_ends_it_at_once() {
    let mut b = Process::new("b");
    b.tell(0, Input::Tick);
    assert_eq!(b.tell(10, Input::Stop), [Effect::Stopped]);
    assert_eq!(b.lease.next_deadline(), None);
    assert_eq!(b.tell(20, entry(7, "a")), []);
}

#[test]
fn a_lost_answer_is_asked_for_again_and_the_renewal_recognised() {
    let mut a = Process::leading();
    a.tell(510, Input::Tick);
    assert_eq!(a.tell(1_010, Input::Unclear), [write(1, "a")]);
    assert_eq!(a.tell(1_020, Input::Refused), [Effect::Look]);
    assert_eq!(a.tell(1_030, entry(2, "a")), [write(2, "a")]);
    assert_eq!(a.tell(1_040, Input::Written { revision: 3 }), []);
    assert!(a.lease.may_act(at(3_529)) && !a.lease.may_act(at(3_530)));
}

#[test]
fn a_leader_that_sees_another_stops_at_once() {
    let mut a = Process::leading();
    a.tell(510, Input::Tick);
    a.tell(520, Input::Refused);
    assert_eq!(a.tell(530, entry(2, "b")), [Effect::Yield]);
    assert!(!a.lease.may_act(at(530)));
}

#[test]
fn a_bucket_that_does_not_answer_is_asked_at_a_steady_pace() {
    let mut b = Process::new("b");
    let mut asked = 0;
    for now in 0..10_000 {
        for effect in b.tell(now, Input::Tick) {
            assert_eq!(effect, Effect::Look);
            asked += 1;
            assert_eq!(b.tell(now, Input::NotLooked), []);
        }
    }
    assert_eq!(asked, 20);
}

#[test]
fn a_stray_answer_changes_nothing() {
    let mut a = Process::leading();
    let before = a.lease.clone();
    for stray in [
        Input::Written { revision: 9 },
        Input::Refused,
        Input::Unclear,
        Input::NotLooked,
        entry(9, "b"),
    ] {
        assert_eq!(a.tell(30, stray), []);
    }
    assert_eq!(a.lease, before);
}
