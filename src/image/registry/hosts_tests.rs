use super::*;

/// Writes a certs.d with one file and loads the hosts of `registry`.
fn loaded(directory: &str, toml: &str, registry: &str) -> (Vec<Host>, Option<HostsError>) {
    let root = tempfile::tempdir().unwrap();
    let host_directory = root.path().join(directory);
    std::fs::create_dir(&host_directory).unwrap();
    std::fs::write(host_directory.join("hosts.toml"), toml).unwrap();
    load(&[root.path().to_owned()], registry)
}

fn problems(toml: &str) -> Vec<String> {
    let (hosts, error) = loaded("a.io", toml, "a.io");
    assert_eq!(
        hosts
            .iter()
            .map(|host| host.authority.as_str())
            .collect::<Vec<_>>(),
        ["a.io"],
        "a broken file leaves the registry itself"
    );
    error.expect("the file was accepted").problems
}

#[test]
fn without_a_file_it_is_the_registry_itself() {
    for (registry, transport, authority, skip_verify) in [
        ("docker.io", Transport::Https, "registry-1.docker.io", false),
        ("quay.io", Transport::Https, "quay.io", false),
        ("quay.io:5000", Transport::Https, "quay.io:5000", false),
        ("localhost", Transport::Https, "localhost", true),
        ("localhost:443", Transport::Https, "localhost:443", true),
        ("localhost:80", Transport::Http, "localhost:80", false),
        (
            "localhost:5000",
            Transport::HttpsThenHttp,
            "localhost:5000",
            true,
        ),
        (
            "127.1.2.3:5000",
            Transport::HttpsThenHttp,
            "127.1.2.3:5000",
            true,
        ),
        ("[::1]:5000", Transport::HttpsThenHttp, "[::1]:5000", true),
        ("10.0.0.1:5000", Transport::Https, "10.0.0.1:5000", false),
    ] {
        let (hosts, error) = load(&[], registry);
        assert!(error.is_none());
        let [host] = hosts.as_slice() else {
            panic!("{registry}: {hosts:?}")
        };
        assert_eq!(
            (
                host.transport,
                host.authority.as_str(),
                host.tls.skip_verify
            ),
            (transport, authority, skip_verify),
            "{registry}"
        );
        assert_eq!((host.path.as_str(), host.is_mirror), ("/v2", false));
        assert!(host.can_pull && host.can_resolve);
    }
}

#[test]
fn mirrors_come_in_file_order_and_the_registry_last() {
    let (hosts, error) = loaded(
        "docker.io",
        r#"
server = "https://hub.example.com"
[host."https://z.example.com"]
  capabilities = ["pull"]
[host."http://a.example.com:5000/cache"]
[host."b.example.com/v2/hub"]
  override_path = true
"#,
        "docker.io",
    );
    assert!(error.is_none(), "{error:?}");
    let seen: Vec<_> = hosts
        .iter()
        .map(|host| {
            (
                host.authority.as_str(),
                host.path.as_str(),
                host.transport,
                host.is_mirror,
            )
        })
        .collect();
    assert_eq!(
        seen,
        [
            ("z.example.com", "/v2", Transport::Https, true),
            ("a.example.com:5000", "/cache/v2", Transport::Http, true),
            ("b.example.com", "/v2/hub", Transport::Https, true),
            ("hub.example.com", "/v2", Transport::Https, false),
        ]
    );
    assert!(!hosts[0].can_resolve && hosts[0].can_pull);
    assert!(hosts[1].can_resolve && hosts[1].can_pull);
}

#[test]
fn without_a_server_the_last_is_the_registry_with_the_root_settings() {
    let (hosts, _) = loaded(
        "docker.io",
        "skip_verify = true\ncapabilities = [\"push\"]\n[host.\"https://registry-1.docker.io\"]\n",
        "docker.io",
    );
    assert_eq!(hosts.len(), 2);
    assert!(
        !hosts[0].is_mirror,
        "the registry's own address is no mirror"
    );
    assert_eq!(hosts[1].authority, "registry-1.docker.io");
    assert!(hosts[1].tls.skip_verify && hosts[1].can_pull);
}

#[test]
fn files_are_relative_to_the_directory_in_each_form() {
    let (hosts, error) = loaded(
        "a.io_5000_",
        r#"
server = "https://a.io:5000"
ca = "root.crt"
client = [["c.crt", "c.key"], ["/abs/d.crt", "/abs/d.key"]]
[host."https://m1"]
ca = ["one.crt", "/abs/two.crt"]
client = "both.pem"
[host."https://m2"]
client = ["x.pem", "y.pem"]
"#,
        "a.io:5000",
    );
    assert!(error.is_none(), "{error:?}");
    let name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
    assert_eq!(hosts[0].tls.ca[1], PathBuf::from("/abs/two.crt"));
    assert!(hosts[0].tls.ca[0].is_absolute());
    assert_eq!(hosts[0].tls.client.len(), 1);
    assert_eq!(hosts[0].tls.client[0].1, None);
    assert_eq!(hosts[1].tls.client.len(), 2);
    assert_eq!(name(&hosts[2].tls.ca[0]), "root.crt");
    assert_eq!(
        hosts[2].tls.client[1],
        ("/abs/d.crt".into(), Some("/abs/d.key".into()))
    );
}

#[test]
fn headers_and_timeouts_are_read() {
    let (hosts, error) = loaded(
        "_default",
        "[host.\"http://m:1\"]\ndial_timeout = \"1m0.5s\"\n[host.\"http://m:1\".header]\nX-A = \"1\"\nX-B = [\"2\", \"3\"]\n",
        "any.io",
    );
    assert!(error.is_none(), "{error:?}");
    assert_eq!(hosts[0].dial_timeout, Some(Duration::from_millis(60_500)));
    assert_eq!(hosts[0].headers.get_all("x-b").iter().count(), 2);
    assert!(hosts[0].headers["x-a"].is_sensitive());
    assert_eq!(hosts[1].authority, "any.io");
}

#[test]
fn plain_http_with_tls_settings_tries_tls_first() {
    let (hosts, _) = loaded(
        "a.io",
        "[host.\"http://m:5000\"]\nskip_verify = true\n[host.\"http://m:80\"]\nskip_verify = true\n[host.\"http://n:5000\"]\n",
        "a.io",
    );
    let transports: Vec<_> = hosts.iter().map(|host| host.transport).collect();
    assert_eq!(
        transports,
        [
            Transport::HttpsThenHttp,
            Transport::Http,
            Transport::Http,
            Transport::Https
        ]
    );
}

#[test]
fn the_directory_with_the_port_wins_over_the_default() {
    let root = tempfile::tempdir().unwrap();
    for (name, server) in [
        ("a.io_5000_", "one"),
        ("a.io:5000", "two"),
        ("_default", "three"),
    ] {
        std::fs::create_dir(root.path().join(name)).unwrap();
        std::fs::write(
            root.path().join(name).join("hosts.toml"),
            format!("server = \"https://{server}\""),
        )
        .unwrap();
    }
    let roots = [root.path().join("absent"), root.path().to_owned()];
    let authority = |registry| load(&roots, registry).0[0].authority.clone();
    assert_eq!(authority("a.io:5000"), "one");
    assert_eq!(authority("b.io"), "three");
    std::fs::remove_dir_all(root.path().join("a.io_5000_")).unwrap();
    assert_eq!(authority("a.io:5000"), "two");
}

#[test]
fn certificate_files_stand_in_for_a_missing_file() {
    let root = tempfile::tempdir().unwrap();
    let directory = root.path().join("a.io");
    std::fs::create_dir(&directory).unwrap();
    for name in ["ca.crt", "me.cert", "me.key", "other.cert"] {
        std::fs::write(directory.join(name), "").unwrap();
    }
    let (hosts, error) = load(&[root.path().to_owned()], "a.io");
    assert!(error.is_none());
    assert_eq!(hosts[0].tls.ca, [directory.join("ca.crt")]);
    assert_eq!(
        hosts[0].tls.client,
        [
            (directory.join("me.cert"), Some(directory.join("me.key"))),
            (directory.join("other.cert"), None)
        ]
    );
}

#[test]
fn every_problem_is_named_with_its_key() {
    let problems = problems(
        r#"
server = 5
ca = [1]
[host."https://m"]
capabilities = ["pull", "fly"]
skip_verify = "yes"
client = [["one"]]
dial_timeout = "soon"
[host."https://m".header]
"bad name" = "x"
Token = 7
"#,
    );
    for key in [
        "server:",
        "ca:",
        "host.\"https://m\".capabilities: \"fly\"",
        "host.\"https://m\".skip_verify:",
        "host.\"https://m\".client:",
        "host.\"https://m\".dial_timeout:",
        "host.\"https://m\".header.bad name:",
        "host.\"https://m\".header.Token:",
    ] {
        assert!(
            problems.iter().any(|problem| problem.starts_with(key)),
            "{key} is not in {problems:#?}"
        );
    }
    assert_eq!(problems.len(), 8, "{problems:#?}");
}

#[test]
fn text_that_is_not_toml_is_said_to_be_so() {
    let found = problems("server = [\n");
    assert!(found[0].contains("TOML"), "{found:?}");
    // The line itself may hold a secret.
    let found = problems("[header]\nauthorization = sEcReT\n");
    assert!(found[0].starts_with("not TOML, line 2: "), "{found:?}");
    assert!(!found[0].contains("sEcReT"), "{found:?}");
    let found = problems("[host.\"http://bob:sEcReT@a.io\"]\nca = 7\n");
    assert!(
        found[0].contains("a.io") && !found[0].contains("sEcReT"),
        "{found:?}"
    );
}
