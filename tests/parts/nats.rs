//! nats-server.

use async_nats::jetstream;

use crate::support::nats::{NatsServer, NatsVersion};

async fn stream_survives(version: NatsVersion, kill: bool) {
    let mut server = NatsServer::start(version).await;
    let url = server.url();
    let context = jetstream::new(server.client().await);
    let config = jetstream::stream::Config {
        name: "S".to_owned(),
        subjects: vec!["s.>".to_owned()],
        ..Default::default()
    };
    context.create_stream(config).await.unwrap();
    context
        .publish("s.1", "kept".into())
        .await
        .unwrap()
        .await
        .unwrap();

    if kill {
        server.kill();
    }
    server.restart().await;

    assert_eq!(server.url(), url);
    let stream = jetstream::new(server.client().await)
        .get_stream("S")
        .await
        .unwrap();
    assert_eq!(
        stream
            .get_last_raw_message_by_subject("s.1")
            .await
            .unwrap()
            .payload,
        "kept"
    );
}

#[tokio::test]
async fn nats_2_10_keeps_port_and_store_over_a_restart() {
    stream_survives(NatsVersion::V2_10, false).await;
}

#[tokio::test]
async fn nats_2_15_keeps_port_and_store_over_a_restart() {
    stream_survives(NatsVersion::V2_15, false).await;
}

#[tokio::test]
async fn nats_keeps_port_and_store_over_a_kill() {
    stream_survives(NatsVersion::V2_15, true).await;
}

#[tokio::test]
async fn each_nats_is_of_the_version_asked_for() {
    for (version, minors) in [
        (NatsVersion::V2_10, 10..=10),
        (NatsVersion::V2_15, 15..=u32::MAX),
    ] {
        let server = NatsServer::start(version).await;
        let said = server.client().await.server_info().version;
        let minor = said
            .strip_prefix("2.")
            .and_then(|rest| rest.split('.').next())
            .and_then(|minor| minor.parse().ok());
        assert!(
            minor.is_some_and(|minor: u32| minors.contains(&minor)),
            "{version:?} is {said}"
        );
    }
}

#[tokio::test]
async fn extra_configuration_is_in_force() {
    let accounts = "accounts { CORE { jetstream: enabled, users: [{user: core, password: pw}] } }\nmax_payload: 12345";
    let server = NatsServer::start_with(NatsVersion::V2_15, accounts).await;
    let options =
        async_nats::ConnectOptions::with_user_and_password("core".to_owned(), "pw".to_owned());
    let client = options.connect(server.url()).await.unwrap();
    assert_eq!(client.server_info().max_payload, 12345);
    let refused =
        async_nats::ConnectOptions::with_user_and_password("core".to_owned(), "wrong".to_owned());
    assert!(refused.connect(server.url()).await.is_err());
}
