//! SIGINT and SIGTERM: the first asks to end well, the second ends at once.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::exit::{Failure, INTERRUPTED};

/// A token that the first signal cancels.
///
/// # Errors
/// The process may not have signal handlers.
pub fn shutdown_on_signals() -> Result<CancellationToken, Failure> {
    let listen = |kind| {
        signal(kind).map_err(|error| Failure::input(format!("cannot listen for signals: {error}")))
    };
    let interrupts = listen(SignalKind::interrupt())?;
    let terminations = listen(SignalKind::terminate())?;
    let token = CancellationToken::new();
    tokio::spawn(watch(interrupts, terminations, token.clone()));
    Ok(token)
}

async fn watch(mut interrupts: Signal, mut terminations: Signal, token: CancellationToken) {
    for again in [false, true] {
        tokio::select! {
            _ = interrupts.recv() => {}
            _ = terminations.recv() => {}
        }
        if again {
            tracing::warn!("told to stop a second time: stopping at once");
            std::process::exit(INTERRUPTED);
        }
        tracing::info!("told to stop: ending well; a second signal ends at once");
        token.cancel();
    }
}
