//! A gate in front of a registry: lets so many bytes of answers through and holds the rest until told to go on.
//!
//! A test that wants to do something in the middle of a pull closes the gate after some bytes, waits until something is
//! held, does it, and opens the gate: no timing, no sleeping.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{AcquireError, Semaphore, SemaphorePermit, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior};

use super::wait::eventually;

/// How much passes in one piece.
const PIECE: usize = 16 * 1024;
/// How often a gate that is open for so many bytes a second lets some through.
const PACE: Duration = Duration::from_millis(10);
/// How much it lets through at once, as time at its rate.
const MOST_AT_ONCE: Duration = Duration::from_millis(100);

/// A TCP proxy on 127.0.0.1 that ends with its value.
#[derive(Debug)]
pub struct Gate {
    port: u16,
    state: Arc<State>,
    accepting: JoinHandle<()>,
}

#[derive(Debug)]
struct State {
    target: String,
    /// The bytes of answers that may still pass.
    allowance: Semaphore,
    passed: AtomicU64,
    held: AtomicU64,
    /// How often all connections were cut.
    cuts: watch::Sender<u64>,
}

impl Gate {
    /// A gate before the server at `target` (`host:port`) that lets `bytes` bytes of answers through.
    pub async fn closed_after(bytes: usize, target: &str) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0))
            .await
            .expect("a free loopback port");
        let port = listener
            .local_addr()
            .expect("the address of a listener")
            .port();
        let state = Arc::new(State {
            target: target.to_owned(),
            allowance: Semaphore::new(bytes),
            passed: AtomicU64::new(0),
            held: AtomicU64::new(0),
            cuts: watch::Sender::new(0),
        });
        let accepting = tokio::spawn(accept(listener, state.clone()));
        Self {
            port,
            state,
            accepting,
        }
    }

    /// `127.0.0.1:PORT`: what to say instead of the target's address.
    pub fn addr(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The bytes of answers that have passed, headers included.
    pub fn passed(&self) -> u64 {
        self.state.passed.load(Ordering::Relaxed)
    }

    /// Waits until a connection waits at the gate.
    pub async fn holds(&self, limit: Duration) {
        eventually("an answer that waits at the gate", limit, async || {
            let passed = self.passed();
            if self.state.held.load(Ordering::Relaxed) > 0 {
                Ok(())
            } else {
                Err(format!("{passed} bytes passed"))
            }
        })
        .await;
    }

    /// Lets `bytes` more through.
    pub fn allow(&self, bytes: usize) {
        self.state.allowance.add_permits(bytes);
    }

    /// Lets so many bytes a second through from now on, as a slow line does.
    pub fn open_at(&self, bytes_per_second: u32) {
        let state = self.state.clone();
        tokio::spawn(async move {
            let mut ticks = tokio::time::interval(PACE);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let mut last = Instant::now();
            while !state.allowance.is_closed() {
                ticks.tick().await;
                let passed = last.elapsed().min(MOST_AT_ONCE);
                let due = f64::from(bytes_per_second) * passed.as_secs_f64();
                last = Instant::now();
                // What nobody takes now does not come on top later, nor does what a machine that stood still missed.
                if state.held.load(Ordering::Relaxed) > 0 {
                    state.allowance.add_permits(due as usize);
                }
            }
        });
    }

    /// Cuts the connections there are, with what they hold, and lets everything through from now on.
    pub fn cut(&self) {
        self.state.cuts.send_modify(|cuts| *cuts += 1);
        self.open();
    }

    /// Lets everything through from now on.
    pub fn open(&self) {
        self.allow(Semaphore::MAX_PERMITS - self.state.allowance.available_permits());
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.accepting.abort();
        self.state.allowance.close();
    }
}

async fn accept(listener: TcpListener, state: Arc<State>) {
    while let Ok((client, _)) = listener.accept().await {
        let state = state.clone();
        tokio::spawn(async move {
            // A server that is down looks like one that closes the connection.
            if let Ok(server) = TcpStream::connect(&state.target).await {
                let (from_client, to_client) = client.into_split();
                let (from_server, to_server) = server.into_split();
                let mut cuts = state.cuts.subscribe();
                tokio::select! {
                    biased;
                    _ = cuts.changed() => {}
                    _ = async { tokio::join!(
                        ask(from_client, to_server),
                        answer(from_server, to_client, &state)
                    ) } => {}
                }
            }
        });
    }
}

async fn ask(mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
    // Ends with either side; then dropping the halves tells the other.
    let _ = tokio::io::copy(&mut from, &mut to).await;
}

async fn answer(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, state: &State) {
    let mut piece = vec![0; PIECE];
    while let Ok(length @ 1..) = from.read(&mut piece).await {
        let Ok(pass) = pass(state, length as u32).await else {
            return;
        };
        pass.forget();
        state.passed.fetch_add(length as u64, Ordering::Relaxed);
        if to.write_all(&piece[..length]).await.is_err() {
            return;
        }
    }
}

/// Leave for `length` bytes, at once or after a while at the gate; an error once the gate is gone.
async fn pass(state: &State, length: u32) -> Result<SemaphorePermit<'_>, AcquireError> {
    if let Ok(pass) = state.allowance.try_acquire_many(length) {
        return Ok(pass);
    }
    state.held.fetch_add(1, Ordering::Relaxed);
    let passes = state.allowance.acquire_many(length).await;
    state.held.fetch_sub(1, Ordering::Relaxed);
    passes
}
