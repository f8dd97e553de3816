//! A task arrives, comes again, gives way to another run, or is revoked.

use std::sync::Arc;
use std::time::Duration;

use super::{ACKS_PER_WAIT, Phase, WorkerState};
use crate::domain::time::Timestamp;
use crate::wire::task::{PullTask, Run};
use crate::wire::worker::PullId;
use crate::work::effect::{DeliveryToken, Effect, Note};
use crate::work::hand::{Held, Stage, Succession, Until, pull_id, succession};
use crate::work::memory::REVOCATION_MEMORY;

impl WorkerState {
    pub(super) fn delivered(
        &mut self,
        now: Timestamp,
        token: DeliveryToken,
        task: Arc<PullTask>,
        deliveries: u32,
        effects: &mut Vec<Effect>,
    ) {
        self.outstanding = self.outstanding.saturating_sub(1);
        let id = pull_id(&task);
        if task.node != self.settings.node {
            effects.push(Effect::Ack(token));
            let node = task.node.clone();
            effects.push(Effect::Note(Note::ForAnotherNode { pull: id, node }));
            return;
        }
        let position = self.hand.position(&id);
        if let Some(same) = position
            && self.hand.held[same].id == id
        {
            let held = &mut self.hand.held[same];
            effects.push(Effect::Forget(std::mem::replace(&mut held.token, token)));
            return;
        }
        if self.phase != Phase::Serving {
            return put_back(token, None, Note::Stopping(id), effects);
        }
        if let Some(left) = self.memory.revoked(&id, now) {
            return put_back(token, Some(left), Note::RevokedBefore(id), effects);
        }
        if let Some(other) = position {
            let in_hand = &self.hand.held[other].id.run;
            let after = succession(&id.run, in_hand);
            if after == Succession::Earlier {
                effects.push(Effect::Ack(token));
                effects.push(Effect::Note(Note::Outdated(id)));
                return;
            }
            self.give_way(other, after, &id.run, effects);
        }
        if self.slots_taken() >= self.settings.capacity {
            return put_back(token, None, Note::NoSlot(id), effects);
        }
        let (attempt, stage) = self.answer_from_kept(&id, effects).unwrap_or_else(|| {
            let next = self.memory.attempts(&id).saturating_add(1);
            (deliveries.max(next), Stage::Waiting)
        });
        let until = Until::of(&task, now);
        let until = self.memory.until(&id, until.released_at).unwrap_or(until);
        self.hand.held.push(Held {
            id,
            task,
            until,
            token,
            attempt,
            in_progress_at: now.after(self.settings.ack_wait / ACKS_PER_WAIT),
            stage,
        });
    }

    /// Takes a task out of the hand, for another run of the same job and image.
    fn give_way(&mut self, position: usize, to: Succession, run: &Run, effects: &mut Vec<Effect>) {
        let (held, to_cancel) = self.hand.release(position);
        effects.extend(to_cancel.map(Effect::CancelPull));
        effects.extend(held.to_discard().map(Effect::Discard));
        effects.push(match to {
            Succession::Stranger => Effect::Nak {
                // If it was the newer one after all, its message is still there and comes again, and
                // this time the older one gives way, whose message is not.
                token: held.token,
                delay: None,
            },
            Succession::Later | Succession::Earlier => Effect::Ack(held.token),
        });
        effects.push(Effect::Note(Note::Superseded {
            pull: held.id,
            by: run.clone(),
        }));
    }

    /// Puts revoked pulls back rather than acking them. The dispatcher has withdrawn their messages, so
    /// nothing comes again; but if it has released one anew meanwhile, an ack would lose that one.
    pub(super) fn revoked(
        &mut self,
        now: Timestamp,
        pulls: Vec<PullId>,
        effects: &mut Vec<Effect>,
    ) {
        for id in pulls {
            let in_hand = self.hand.held.iter().position(|held| held.id == id);
            if let Some(position) = in_hand {
                let (held, to_cancel) = self.hand.release(position);
                effects.extend(to_cancel.map(Effect::CancelPull));
                effects.extend(held.to_discard().map(Effect::Discard));
                effects.push(Effect::Nak {
                    token: held.token,
                    delay: Some(REVOCATION_MEMORY),
                });
                effects.push(Effect::Note(Note::Revoked(held.id)));
            }
            self.memory.revoke(id, now);
        }
    }
}

fn put_back(token: DeliveryToken, delay: Option<Duration>, why: Note, effects: &mut Vec<Effect>) {
    effects.push(Effect::Nak { token, delay });
    effects.push(Effect::Note(why));
}
