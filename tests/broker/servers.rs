//! Who looks after the servers themselves.

use std::time::Duration;

use async_nats::ConnectOptions;
use serde_json::Value;

use crate::support::nats::{NatsServer, NatsVersion};
use crate::support::shipped;
use crate::support::wait::{eventually, within};

const LIMIT: Duration = Duration::from_secs(20);

async fn client(server: &NatsServer, user: &str, password: &str) -> async_nats::Client {
    let options = ConnectOptions::with_user_and_password(user.into(), password.into());
    options.connect(server.url()).await.unwrap()
}

/// What `nats server report jetstream` asks; RUNBOOK.md tells to.
const REPORT: &str = "$SYS.REQ.SERVER.PING.JSZ";

#[tokio::test]
async fn the_user_of_the_system_account_gets_reports_and_nobody_else_does() {
    for version in NatsVersion::ALL {
        let server = NatsServer::start_with(version, &shipped::accounts()).await;
        let sys = client(&server, "sys", "sys").await;
        let report = eventually("a report of JetStream", LIMIT, async || {
            let asked = sys.request(REPORT, r#"{"accounts": true}"#.into());
            asked.await.map(|answer| answer.payload)
        })
        .await;
        let report: Value = serde_json::from_slice(&report).unwrap();
        let accounts = report["data"]["account_details"].to_string();
        assert!(
            accounts.contains(r#""name":"CORE""#),
            "{version:?}: {report}"
        );

        // Even those who may publish anything in their own account.
        let core = client(&server, "core", "core").await;
        let asked = within(
            LIMIT,
            "word that nobody listens",
            core.request(REPORT, "".into()),
        );
        let error = asked.await.unwrap_err();
        assert_eq!(error.kind(), async_nats::RequestErrorKind::NoResponders);
        // And it has nothing of the fleet's.
        let jetstream = async_nats::jetstream::new(sys);
        let refused = within(LIMIT, "a refusal", jetstream.query_account()).await;
        assert!(refused.is_err(), "{version:?}: {refused:?}");
    }
}
