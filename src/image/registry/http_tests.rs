use futures::TryStreamExt as _;

use super::super::hosts::load;
use super::super::proxy::Proxies;
use super::super::test_server::{Server, manifest, reply};
use super::super::transport::Transports;
use super::*;

fn url(text: &str) -> Url {
    text.parse().unwrap()
}

#[test]
fn secrets_stay_with_the_server_that_was_asked_and_with_its_tls() {
    for (from, to, same) in [
        ("http://a.io/x", "http://a.io/y", true),
        ("https://a.io/x", "https://a.io:443/y", true),
        ("http://a.io/x", "https://a.io/x", true),
        ("http://a.io:80/x", "https://a.io:443/x", true),
        ("http://a.io:5000/x", "https://a.io:5000/x", true),
        ("https://a.io/x", "http://a.io/x", false),
        ("https://a.io:5000/x", "http://a.io:5000/x", false),
        ("http://a.io/x", "https://a.io:5000/x", false),
        ("http://a.io/x", "https://b.io/x", false),
        ("https://a.io/x", "https://a.io:5000/x", false),
        ("https://a.io/x", "https://b.a.io/x", false),
        ("https://b.a.io/x", "https://a.io/x", false),
    ] {
        assert_eq!(is_same_place(&url(from), &url(to)), same, "{from} {to}");
    }
}

fn secrets() -> HeaderMap {
    [
        ("authorization", "Bearer t"),
        ("x-key", "k"),
        ("range", "bytes=1-"),
    ]
    .into_iter()
    .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
    .collect()
}

async fn get(server: &Server) -> Result<Response, SendError> {
    let (hosts, _) = load(&[], &server.addr);
    let client = Transports::new(Proxies::default())
        .client(&hosts[0])
        .unwrap();
    let url = url(&format!("http://{}/a", server.addr));
    send(&client, Method::GET, url, secrets(), (Trust::Digest, "x")).await
}

#[tokio::test]
async fn a_redirect_within_the_server_takes_everything_along() {
    for code in [301, 302, 303, 307, 308] {
        let server = Server::start(move |asked| match asked.target.as_str() {
            "/a" => reply(code, &[("location", "/b?c=d")], ""),
            _ => manifest(),
        })
        .await;
        let response = get(&server).await.unwrap_or_else(|_| panic!("{code}"));
        assert_eq!(response.status(), 200);
        let asked = server.asked();
        assert_eq!((asked.len(), asked[1].target.as_str()), (2, "/b?c=d"));
        for (name, value) in &secrets() {
            assert_eq!(asked[1].headers.get(name), Some(value), "{code}");
        }
    }
}

/// What went to another place must not get a secret back from there.
#[tokio::test]
async fn a_redirect_there_and_back_takes_no_secret_along() {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
        .await
        .unwrap();
    let home = format!("http://{}/back", listener.local_addr().unwrap());
    let away = Server::start(move |_| reply(302, &[("location", &home)], "")).await;
    let there = format!("http://{}/there", away.addr);
    let server = Server::on(listener, move |asked| match asked.target.as_str() {
        "/a" => reply(302, &[("location", &there)], ""),
        _ => manifest(),
    });
    get(&server).await.unwrap_or_else(|_| panic!("refused"));
    let asked = server.asked();
    assert_eq!(asked[1].target, "/back");
    for secret in ["authorization", "x-key"] {
        assert_eq!(asked[1].header(secret), None);
        assert_eq!(away.asked()[0].header(secret), None);
    }
}

/// An answer whose pieces come with these pauses before them.
fn trickled(pieces: Vec<(Duration, usize)>) -> Response {
    let pieces = futures::stream::iter(pieces).then(|(pause, length)| async move {
        tokio::time::sleep(pause).await;
        Ok::<_, std::io::Error>(vec![0; length])
    });
    axum::http::Response::new(reqwest::Body::wrap_stream(pieces)).into()
}

async fn read(response: Response) -> Result<usize, Failure> {
    let chunks: Vec<Bytes> = body(response, "x".to_owned()).try_collect().await?;
    Ok(chunks.concat().len())
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_trickles_ends_and_one_that_is_slow_does_not() {
    let second = Duration::from_secs(1);
    let rate = LEAST_RATE as usize;
    let failure = read(trickled(vec![(second, rate / 2); 100]))
        .await
        .unwrap_err();
    assert_eq!(failure.kind, FailureKind::RegistryUnavailable);
    assert!(failure.message.contains("bytes a second"), "{failure}");
    assert_eq!(
        read(trickled(vec![(second, 2 * rate); 100])).await.unwrap(),
        200 * rate
    );
    // One that ends before it has been slow for long enough, and one that makes up for a pause.
    assert_eq!(read(trickled(vec![(second, 1); 10])).await.unwrap(), 10);
    let pauses = [
        (Duration::from_secs(25), 60 * rate),
        (Duration::from_secs(20), 1),
    ]
    .repeat(4);
    assert_eq!(read(trickled(pauses)).await.unwrap(), 4 * (60 * rate + 1));
}

#[tokio::test(start_paused = true)]
async fn time_in_which_nobody_asks_does_not_count() {
    let pieces = vec![(Duration::from_millis(1), 100); 20];
    let mut stream = pin!(body(trickled(pieces), "x".to_owned()));
    let mut length = 0;
    while let Some(piece) = stream.next().await {
        length += piece.unwrap().len();
        // As a limit on the bandwidth makes it.
        tokio::time::sleep(RATE_WINDOW).await;
    }
    assert_eq!(length, 2000);
}

#[tokio::test(start_paused = true)]
async fn a_bounded_answer_that_trickles_ends_as_well() {
    let response = trickled(vec![(Duration::from_secs(1), 10); 100]);
    let failure = read_bounded(response, 1 << 20, "x").await.unwrap_err();
    assert!(failure.message.contains("bytes a second"), "{failure}");
}
