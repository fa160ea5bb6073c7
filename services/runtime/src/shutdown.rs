//! Shutdown: the first SIGTERM or SIGINT asks for it, the second enforces it.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The exit status after a second signal.
pub const ABORTED: i32 = 130;

/// A token that is cancelled at the first SIGTERM or SIGINT. At the second the process exits with
/// status 130 at once.
///
/// Must be called within a tokio runtime. Fails if the signal handlers cannot be installed.
pub fn on_signals() -> std::io::Result<CancellationToken> {
    let token = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let cancel = token.clone();
    tokio::spawn(async move {
        let mut received = 0_u8;
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            received += 1;
            if received > 1 {
                tracing::warn!("received a second signal; exiting at once");
                std::process::exit(ABORTED);
            }
            tracing::info!("received a signal; finishing requests in progress");
            cancel.cancel();
        }
    });
    Ok(token)
}
