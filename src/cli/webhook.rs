//! `prewarm webhook`.

use std::sync::{Arc, OnceLock};

use super::args::WebhookRoleArgs;
use super::exit::Failure;
use super::roles::{Role, host_name};
use super::{Invocation, signals};
use crate::webhook::metrics::Metrics;
use crate::webhook::server::Server;

/// Takes webhooks until it is stopped. The port is open before the broker is there: who calls is told to come
/// again, which is better than no answer.
///
/// # Errors
/// Bad settings, or a port or certificate that cannot be had.
pub async fn run(invocation: &Invocation, args: &WebhookRoleArgs) -> Result<(), Failure> {
    let mut check = invocation.check();
    let broker = invocation.broker(&mut check);
    let settings = args.webhook.check(&mut check);
    let (broker, settings) = check.done(broker.zip(settings))?;
    let shutdown = signals::shutdown_on_signals()?;
    let wrong = |error: prometheus::Error| Failure::input(error.to_string());
    let mut role = Role::new()?;
    let metrics = Metrics::new(&role.registry).map_err(wrong)?;
    role.needs(role.link.broker());
    role.needs(role.link.pushes());
    role.serve(invocation, &shutdown).await?;
    let bus = Arc::new(OnceLock::new());
    let encrypted = settings.tls.is_some();
    let server = Server::bind(settings, Arc::clone(&bus), metrics)
        .await
        .map_err(|error| Failure::input(error.to_string()))?;
    let address = server
        .address()
        .map_err(|error| Failure::input(error.to_string()))?;
    tracing::info!(%address, encrypted, "webhooks are taken");
    let connecting = async {
        let name = format!("prewarm webhook {}", host_name());
        let connected = role.connect(&broker, &name, &shutdown).await;
        connected
            .map(|connected| drop(bus.set(connected)))
            .inspect_err(|_| shutdown.cancel())
    };
    let (connected, ()) = tokio::join!(connecting, server.run(shutdown.clone()));
    tracing::info!("the receiver has ended");
    connected
}
