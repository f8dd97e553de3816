//! The broker's configuration that is shipped in deploy/nats, filled in as its users are told to.

use std::path::Path;

/// The accounts, which read their passwords from variables.
pub const ACCOUNTS: &str = include_str!("../../deploy/nats/accounts.conf");
/// One of three servers.
pub const CLUSTER: &str = include_str!("../../deploy/nats/cluster.conf");

/// The same with TLS.
pub const CLUSTER_TLS: &str = include_str!("../../deploy/nats/cluster-tls.conf");

/// The variables of [`ACCOUNTS`]: everyone's password is the name of the role.
const PASSWORDS: &str = "CORE_PASSWORD: core\nNODE_1_PASSWORD: node\nWEBHOOK_PASSWORD: webhook\nCI_PASSWORD: ci\nSYS_PASSWORD: sys\n";
/// The user of [`cluster`] that may speak for every node: simulated ones share their connections.
pub const EVERY_NODE: &str = "every-node";

/// The accounts with their passwords, for a server that has nothing else.
pub fn accounts() -> String {
    format!("{PASSWORDS}{ACCOUNTS}")
}

/// The same with a user for a second node beside the first, made as the file says.
pub fn two_nodes() -> String {
    beside_the_first_node("node-2", "node-2")
}

/// The accounts with one more user, called `user`, that has the rights of the node with this token.
fn beside_the_first_node(user: &str, token: &str) -> String {
    let (_, rest) = ACCOUNTS.split_once("users: [{user: node-1").unwrap();
    let (rest, _) = rest.split_once("}}]").unwrap();
    let first = format!("{{user: node-1{rest}}}}}");
    assert_eq!(ACCOUNTS.matches(&first).count(), 1, "{first}");
    let other = first
        .replace("user: node-1", &format!("user: {user}"))
        .replace("node-1", token)
        .replace("$NODE_1_PASSWORD", "node");
    let both = ACCOUNTS.replace(&first, &format!("{first}, {other}"));
    format!("{PASSWORDS}{both}")
}

/// Where one server of a cluster on loopback listens, besides for clients.
#[derive(Debug, Clone, Copy)]
pub struct Ports {
    /// For the other servers.
    pub route: u16,
    /// For probes.
    pub monitor: u16,
}

/// The configuration of server `number` of a cluster, for `NatsServer::start_whole`: a shipped file as it is, but for
/// ports and paths.
pub fn cluster(conf: &str, number: usize, all: &[Ports]) -> String {
    let mut text = conf.to_owned();
    let mut put = |old: &str, new: String| {
        assert_eq!(text.matches(old).count(), 1, "{old:?} in {conf}");
        text = text.replace(old, &new);
    };
    let Ports { route, monitor } = all[number];
    put("\nport: 4222\n", "\nlisten: \"127.0.0.1:@PORT@\"\n".into());
    // As variables of the file, and not of the environment, they would be settings themselves.
    put("$SERVER_NAME", format!("\"server-{number}\""));
    put("$STORE_DIR", "\"@STORE@\"".into());
    put("http_port: 8222", format!("http: \"127.0.0.1:{monitor}\""));
    put(
        "  port: 6222\n",
        format!("  listen: \"127.0.0.1:{route}\"\n"),
    );
    put(
        "\ninclude accounts.conf\n",
        format!("\n{}", beside_the_first_node(EVERY_NODE, "*")),
    );
    let routes = all.iter().enumerate().map(|(number, ports)| {
        format!(
            "ROUTE_{number}: \"nats://cluster:cluster@127.0.0.1:{}\"\n",
            ports.route
        )
    });
    let routes: String = routes.collect();
    format!("CLUSTER_PASSWORD: cluster\n{routes}{text}")
}

/// The name by which everybody calls every server of [`cluster_tls`]; an address is in none of their certificates.
pub const TLS_HOST: &str = "localhost";

/// The same of the configuration with TLS: `tls.crt`, `tls.key` and `ca.crt` are in `files`.
pub fn cluster_tls(number: usize, all: &[Ports], files: &Path, verify: bool) -> String {
    let mut text = CLUSTER_TLS.to_owned();
    let mut put = |old: &str, count: usize, new: &str| {
        assert_eq!(text.matches(old).count(), count, "{old:?} in {CLUSTER_TLS}");
        text = text.replace(old, new);
    };
    let included = cluster(CLUSTER, number, all).replace("@127.0.0.1:", &format!("@{TLS_HOST}:"));
    put("\ninclude cluster.conf\n", 1, &format!("\n{included}"));
    let route = all[number].route;
    put(
        "  port: 6222\n",
        1,
        &format!("  listen: \"127.0.0.1:{route}\"\n"),
    );
    for (variable, file) in [
        ("$TLS_CERT", "tls.crt"),
        ("$TLS_KEY", "tls.key"),
        ("$TLS_CA", "ca.crt"),
    ] {
        put(
            &format!("file: {variable}\n"),
            2,
            &format!("file: \"{}\"\n", files.join(file).display()),
        );
    }
    put("verify: $TLS_VERIFY", 1, &format!("verify: {verify}"));
    put(
        "advertise: $ADVERTISE",
        1,
        &format!("advertise: \"{TLS_HOST}:@PORT@\""),
    );
    text
}
