//! Waiting for things, with a limit: tests wait for what they want to see, not for time to pass.

use std::fmt::Debug;
use std::future::Future;
use std::time::{Duration, Instant};

/// Between two looks at the same thing.
const POLL: Duration = Duration::from_millis(20);
/// How long a look may take that was begun before the limit: a machine that stood still has not used up the last one.
const LOOK: Duration = Duration::from_secs(5);

/// What one look can say: there it is, or not yet and what was seen instead.
pub trait Look {
    /// What the wait is for.
    type Found;
    /// The thing, or what was seen in its place.
    fn found(self) -> Result<Self::Found, String>;
}

impl<T> Look for Option<T> {
    type Found = T;
    fn found(self) -> Result<T, String> {
        self.ok_or_else(|| "nothing".to_owned())
    }
}

impl<T, E: Debug> Look for Result<T, E> {
    type Found = T;
    fn found(self) -> Result<T, String> {
        self.map_err(|error| format!("{error:?}"))
    }
}

impl Look for bool {
    type Found = ();
    fn found(self) -> Result<(), String> {
        if self {
            Ok(())
        } else {
            Err("false".to_owned())
        }
    }
}

/// Looks again and again until `look` finds something: `Some`, `Ok` or `true`.
///
/// # Panics
/// After `limit`, with `what` was waited for and what was seen last. One look may not take longer than what is left, or 5 s.
pub async fn eventually<L: Look>(
    what: &str,
    limit: Duration,
    mut look: impl AsyncFnMut() -> L,
) -> L::Found {
    let deadline = Instant::now() + limit;
    let mut seen = "nothing, and the first look did not end".to_owned();
    loop {
        let left = deadline.saturating_duration_since(Instant::now()).max(LOOK);
        match tokio::time::timeout(left, look()).await.map(Look::found) {
            Ok(Ok(found)) => return found,
            Ok(Err(instead)) => seen = instead,
            Err(_) => {}
        }
        assert!(
            Instant::now() < deadline,
            "waited {limit:?} for {what}; saw last: {seen}"
        );
        tokio::time::sleep(POLL).await;
    }
}

/// The result of `future`.
///
/// # Panics
/// When it takes longer than `limit`, with `what` was waited for.
pub async fn within<F: Future>(limit: Duration, what: &str, future: F) -> F::Output {
    match tokio::time::timeout(limit, future).await {
        Ok(output) => output,
        Err(_) => panic!("waited {limit:?} for {what}"),
    }
}
