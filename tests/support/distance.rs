//! A server that is far away: a proxy whose answers take their time, and are neither lost nor torn apart.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

/// How much passes in one piece.
const PIECE: usize = 16 * 1024;
/// Pieces on their way at once.
const ON_THE_WAY: usize = 64;

/// A TCP proxy on 127.0.0.1 that ends with its value.
#[derive(Debug)]
pub struct Distance {
    port: u16,
    accepting: JoinHandle<()>,
}

impl Distance {
    /// Puts the server at `target` (`host:port`) so far away that each of its answers comes this much later.
    pub async fn of(delay: Duration, target: &str) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0))
            .await
            .expect("a free loopback port");
        let port = listener
            .local_addr()
            .expect("the address of a listener")
            .port();
        let target = target.to_owned();
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                // A server that is down looks like one that closes the connection.
                if let Ok(server) = TcpStream::connect(&target).await {
                    let (mut from_client, to_client) = client.into_split();
                    let (from_server, mut to_server) = server.into_split();
                    let (sender, receiver) = mpsc::channel(ON_THE_WAY);
                    tokio::spawn(
                        async move { tokio::io::copy(&mut from_client, &mut to_server).await },
                    );
                    tokio::spawn(leave(from_server, delay, sender));
                    tokio::spawn(arrive(receiver, to_client));
                }
            }
        });
        Self { port, accepting }
    }

    /// Where clients connect to.
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for Distance {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

type Piece = (Instant, Vec<u8>);

async fn leave(mut from: OwnedReadHalf, delay: Duration, way: mpsc::Sender<Piece>) {
    let mut piece = vec![0; PIECE];
    while let Ok(length @ 1..) = from.read(&mut piece).await {
        let sent = (Instant::now() + delay, piece[..length].to_vec());
        if way.send(sent).await.is_err() {
            return;
        }
    }
}

async fn arrive(mut way: mpsc::Receiver<Piece>, mut to: OwnedWriteHalf) {
    while let Some((at, piece)) = way.recv().await {
        sleep_until(at).await;
        if to.write_all(&piece).await.is_err() {
            return;
        }
    }
}
