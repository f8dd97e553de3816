//! The line between a client and a server, which can be parted while both live.

use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::support::wait::eventually;

/// How a line ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Parting {
    /// Both sides see the end, as when a server cuts off a client that reads too slowly.
    Cut,
    /// Neither side sees anything, as in a partition: each has to notice that the other is silent.
    Silence,
}

/// A TCP proxy on 127.0.0.1 that ends with its value.
#[derive(Debug)]
pub(crate) struct Line {
    port: u16,
    parted: watch::Sender<Option<Parting>>,
    /// Each connection that is made through it holds one.
    made: watch::Sender<usize>,
    accepting: JoinHandle<()>,
}

impl Line {
    /// A line to the server on this port.
    pub(crate) async fn to(server: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (parted, seen) = watch::channel(None);
        let made = watch::Sender::new(0);
        let making = made.clone();
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                // Who comes when it is parted finds that nobody answers.
                if seen.borrow().is_none()
                    && let Ok(server) = TcpStream::connect(("127.0.0.1", server)).await
                {
                    making.send_modify(|made| *made += 1);
                    tokio::spawn(carry(client, server, seen.clone()));
                }
            }
        });
        Self {
            port,
            parted,
            made,
            accepting,
        }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// How many connections were made through it.
    pub(crate) fn made(&self) -> usize {
        *self.made.borrow()
    }

    /// Ends every connection, and lets none be made any more.
    pub(crate) fn part(&self, how: Parting) {
        self.parted.send_replace(Some(how));
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn carry(
    mut client: TcpStream,
    mut server: TcpStream,
    mut parted: watch::Receiver<Option<Parting>>,
) {
    let parting = tokio::select! {
        _ = tokio::io::copy_bidirectional(&mut client, &mut server) => return,
        Ok(parting) = parted.wait_for(Option::is_some) => *parting,
    };
    if parting == Some(Parting::Silence) {
        // Held open until the test ends.
        let _ = parted.wait_for(Option::is_none).await;
    }
}

/// Waits until one of these lines carries a connection, and says which.
pub(crate) async fn carrying(lines: &[Line], limit: Duration) -> usize {
    eventually("a connection through a line", limit, async || {
        lines
            .iter()
            .position(|line| line.parted.borrow().is_none() && line.made() > 0)
            .ok_or("none was made")
    })
    .await
}
