//! The threads that pulls run on: their own, so that they can be polite without the rest of the worker being so.
//!
//! Linux keeps niceness by thread, and a thread gets that of the one that starts it. From niceness also follows the
//! priority of its reads and writes, for I/O schedulers that have any (`ionice(1)`). Going back would need a right that
//! the worker does not have, so that threads which serve others as well cannot be made nice for a while.

use std::fmt;
use std::future::Future;
use std::str::FromStr;

use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;

use crate::domain::failure::{Failure, FailureKind};

/// What the threads are called, as `ps -T` shows it.
const NAME: &str = "prewarm-pull";
/// The politest niceness (`sched(7)`).
const MAX_NICE: u8 = 19;

/// How much pulls stand back for others on the processor, 0 to 19: a step is a tenth less of it, as long as somebody
/// else wants it, too.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Nice(u8);

/// A text that is no [`Nice`].
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0:?} is not a niceness: a number from 0 to {MAX_NICE}")]
pub struct NiceError(String);

impl FromStr for Nice {
    type Err = NiceError;

    fn from_str(text: &str) -> Result<Self, NiceError> {
        let number = text.parse().ok().filter(|nice| *nice <= MAX_NICE);
        number.map(Self).ok_or_else(|| NiceError(text.to_owned()))
    }
}

impl fmt::Display for Nice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Where pulls run; without niceness, where whoever asks for them does.
pub(super) struct Threads(Option<Runtime>);

impl Threads {
    pub(super) fn new(nice: Nice) -> Result<Self, Failure> {
        if nice == Nice::default() {
            return Ok(Self(None));
        }
        let stand_back = move || {
            let is_nicer = rustix::process::getpriority_process(None)
                .is_ok_and(|niceness| niceness >= nice.0.into());
            // The whole worker may have been started nicer than that.
            if !is_nicer
                && let Err(error) = rustix::process::setpriority_process(None, nice.0.into())
            {
                tracing::warn!(%error, %nice, "a thread of pulls does not stand back");
            }
        };
        let mut builder = Builder::new_multi_thread();
        builder.enable_all().thread_name(NAME);
        let runtime = builder.on_thread_start(stand_back).build();
        runtime.map(|runtime| Self(Some(runtime))).map_err(|error| {
            let message = format!("the threads for pulls cannot be started: {error}");
            Failure::new(FailureKind::RuntimeUnavailable, message)
        })
    }

    pub(super) fn spawn<F>(&self, pull: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        match &self.0 {
            Some(runtime) => runtime.spawn(pull),
            None => tokio::spawn(pull),
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            // Waiting is not allowed where this may happen, which is also on one of its own threads.
            runtime.shutdown_background();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn niceness_is_bounded() {
        assert_eq!("0".parse(), Ok(Nice(0)));
        assert_eq!("19".parse(), Ok(Nice(19)));
        for bad in ["20", "-1", "", "polite"] {
            assert!(bad.parse::<Nice>().is_err(), "{bad:?}");
        }
    }

    #[tokio::test]
    async fn only_the_threads_of_pulls_stand_back() {
        let threads = Threads::new(Nice(7)).unwrap();
        let nice = || rustix::process::getpriority_process(None).unwrap();
        let here = nice();
        let there = threads.spawn(async move {
            let blocking = tokio::task::spawn_blocking(move || {
                let child = std::thread::spawn(nice);
                (nice(), child.join().unwrap())
            });
            (nice(), blocking.await.unwrap())
        });
        let expected = here.max(7);
        assert_eq!(there.await.unwrap(), (expected, (expected, expected)));
        assert_eq!(nice(), here);
        let usual = Threads::new(Nice(0)).unwrap();
        assert_eq!(usual.spawn(async move { nice() }).await.unwrap(), here);
    }
}
