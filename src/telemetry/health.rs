//! Whether a role lives, and whether it can do its work now, asked of what it depends on.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use prometheus::{IntGaugeVec, Opts, Registry};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

/// How long one condition may take to answer; then that is the answer. Less than a prober's patience, which gets the
/// reason then and not only silence.
pub const ASK_LIMIT: Duration = Duration::from_secs(2);
/// How long answers are good for: whoever asks more often asks nobody more often.
const FRESH: Duration = Duration::from_secs(1);

type Answer = Result<(), String>;
type Asking = Pin<Box<dyn Future<Output = Answer> + Send>>;

/// One thing that a role cannot do its work without.
pub struct Condition {
    name: &'static str,
    ask: Box<dyn Fn() -> Asking + Send + Sync>,
}

impl Condition {
    /// A condition; `ask` finds out how it is now, or says why it does not hold.
    pub fn new<F>(name: &'static str, ask: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Answer> + Send + 'static,
    {
        Self {
            name,
            ask: Box::new(move || Box::pin(ask())),
        }
    }

    async fn answer(&self) -> Answer {
        let asked = timeout(ASK_LIMIT, (self.ask)()).await;
        asked.unwrap_or_else(|_| Err(format!("no answer within {} s", ASK_LIMIT.as_secs())))
    }
}

/// Says whether a process lives, or what in it has come to a stand.
pub type Liveness = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// All conditions of a process. Cheap to clone.
#[derive(Clone)]
pub struct Readiness(Arc<Shared>);

struct Shared {
    conditions: Vec<Condition>,
    holds: IntGaugeVec,
    /// What was found last, and when. Held while it is asked: at any time there is one who asks.
    last: Mutex<Option<(Instant, Answer)>>,
}

impl Readiness {
    /// Conditions that are asked together and told as `prewarm_ready`.
    ///
    /// # Errors
    /// The metric's name is taken.
    pub fn new(conditions: Vec<Condition>, registry: &Registry) -> Result<Self, prometheus::Error> {
        let help = "Whether what a role depends on is as it has to be (1) or not (0), by condition";
        let holds = IntGaugeVec::new(Opts::new("prewarm_ready", help), &["condition"])?;
        registry.register(Box::new(holds.clone()))?;
        Ok(Self(Arc::new(Shared {
            conditions,
            holds,
            last: Mutex::default(),
        })))
    }

    /// Asks every condition at the same time.
    ///
    /// # Errors
    /// A line for each condition that does not hold: its name, and why.
    pub async fn ask(&self) -> Result<(), String> {
        let Shared {
            conditions,
            holds,
            last,
        } = &*self.0;
        let mut last = last.lock().await;
        if let Some((at, answer)) = &*last
            && at.elapsed() < FRESH
        {
            return answer.clone();
        }
        let answers = join_all(conditions.iter().map(Condition::answer)).await;
        let mut reasons = Vec::new();
        for (Condition { name, .. }, answer) in conditions.iter().zip(answers) {
            let gauge = holds.with_label_values(&[*name]);
            gauge.set(i64::from(answer.is_ok()));
            reasons.extend(answer.err().map(|reason| format!("{name}: {reason}")));
        }
        let answer = if reasons.is_empty() {
            Ok(())
        } else {
            Err(reasons.join("\n"))
        };
        *last = Some((Instant::now(), answer.clone()));
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    fn readiness(conditions: Vec<Condition>) -> (Readiness, Registry) {
        let registry = Registry::new();
        (Readiness::new(conditions, &registry).unwrap(), registry)
    }

    fn told(registry: &Registry) -> String {
        prometheus::TextEncoder::new()
            .encode_to_string(&registry.gather())
            .unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn what_does_not_hold_is_named_with_its_reason_and_what_does_not_answer_too() {
        let (readiness, registry) = readiness(vec![
            Condition::new("broker", || async { Ok(()) }),
            Condition::new("runtime", || async { Err("gone".to_owned()) }),
            Condition::new("topology", std::future::pending),
        ]);
        let began = Instant::now();
        assert_eq!(
            readiness.ask().await.unwrap_err(),
            "runtime: gone\ntopology: no answer within 2 s"
        );
        assert_eq!(began.elapsed(), ASK_LIMIT);
        let told = told(&registry);
        for line in [
            r#"prewarm_ready{condition="broker"} 1"#,
            r#"prewarm_ready{condition="runtime"} 0"#,
            r#"prewarm_ready{condition="topology"} 0"#,
        ] {
            assert!(told.contains(line), "{told}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_asks_often_asks_nobody_more_often() {
        let asked = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&asked);
        let (readiness, _) = readiness(vec![Condition::new("broker", move || {
            count.fetch_add(1, Ordering::Relaxed);
            async { Ok(()) }
        })]);
        let together = join_all((0..20).map(|_| readiness.ask())).await;
        assert!(together.iter().all(Result::is_ok));
        assert_eq!(asked.load(Ordering::Relaxed), 1);
        tokio::time::advance(FRESH).await;
        readiness.ask().await.unwrap();
        assert_eq!(asked.load(Ordering::Relaxed), 2);
    }
}
