//! Every key and rule of `hosts.toml`, one row each, against what containerd makes of it: read off `hosts.go` of 1.6.20,
//! 1.7.24 and 2.1.4, and for the essentials seen on the wire by `tests/containerd/hosts.rs`.

use super::*;

/// An endpoint in one line: how it is spoken to, where, and what is not as usual about it.
fn line(host: &Host) -> String {
    let scheme = match host.transport {
        Transport::Https => "https",
        Transport::Http => "http",
        Transport::HttpsThenHttp => "https|http",
    };
    let mut line = format!("{scheme}://{}{}", host.authority, host.path);
    let mut add = |is: bool, words: String| {
        if is {
            line.push(' ');
            line.push_str(&words);
        }
    };
    add(!host.can_pull, "-pull".to_owned());
    add(!host.can_resolve, "-resolve".to_owned());
    add(host.tls.skip_verify, "skip".to_owned());
    let name = |path: &PathBuf| match path.strip_prefix(std::env::temp_dir()) {
        // Below the temporary directory is that of the test, and in it that of the registry.
        Ok(below) => {
            let relative: PathBuf = below.iter().skip(2).collect();
            relative.display().to_string()
        }
        Err(_) => path.display().to_string(),
    };
    for ca in &host.tls.ca {
        add(true, format!("ca={}", name(ca)));
    }
    for (certificate, private) in &host.tls.client {
        let private = private.as_ref().map(|path| format!("+{}", name(path)));
        add(
            true,
            format!(
                "client={}{}",
                name(certificate),
                private.unwrap_or_default()
            ),
        );
    }
    for (header, value) in &host.headers {
        add(true, format!("{header}:{}", value.to_str().unwrap()));
    }
    let dial = host.dial_timeout;
    add(
        dial.is_some(),
        format!("dial={}", dial.unwrap_or_default().as_secs_f64()),
    );
    add(host.is_proxy, "ns".to_owned());
    line
}

/// The endpoints of `registry` with this file in the directory of this name; `!` for a file that is ignored.
fn lines(directory: &str, text: &str, registry: &str) -> Vec<String> {
    let root = tempfile::tempdir().unwrap();
    let directory = root.path().join(directory);
    std::fs::create_dir(&directory).unwrap();
    std::fs::write(directory.join("hosts.toml"), text).unwrap();
    let (hosts, error) = load(&[root.path().to_owned()], registry);
    let ignored = error.map(|_| "!".to_owned());
    ignored.into_iter().chain(hosts.iter().map(line)).collect()
}

/// A file's text, and the endpoints it makes for `a.io`.
const KEYS: &[(&str, &[&str])] = &[
    // The file alone: its root table is the last endpoint, and without `server` the registry itself.
    ("", &["https://a.io/v2"]),
    ("# nothing", &["https://a.io/v2"]),
    ("server = \"\"", &["https://a.io/v2"]),
    ("server = \"https://b.io\"", &["https://b.io/v2 ns"]),
    ("server = \"https://a.io\"", &["https://a.io/v2"]),
    // Schemes.
    ("server = \"b.io\"", &["https://b.io/v2 ns"]),
    ("server = \"b.io:5000\"", &["https://b.io:5000/v2 ns"]),
    ("server = \"http://b.io\"", &["http://b.io/v2 ns"]),
    (
        "server = \"http://b.io:80\"\nskip_verify = true",
        &["http://b.io:80/v2 skip ns"],
    ),
    (
        "server = \"http://b.io\"\nskip_verify = true",
        &["https|http://b.io/v2 skip ns"],
    ),
    (
        "server = \"http://b.io\"\nskip_verify = false",
        &["https|http://b.io/v2 ns"],
    ),
    (
        "server = \"http://b.io\"\nca = \"c\"",
        &["https|http://b.io/v2 ca=c ns"],
    ),
    (
        "server = \"http://b.io\"\nca = []",
        &["https|http://b.io/v2 ns"],
    ),
    (
        "server = \"http://b.io\"\nclient = \"c\"",
        &["https|http://b.io/v2 client=c ns"],
    ),
    (
        "server = \"http://b.io\"\nclient = []",
        &["http://b.io/v2 ns"],
    ),
    (
        "server = \"http://localhost:5000\"",
        &["http://localhost:5000/v2 ns"],
    ),
    (
        "server = \"http://[::1]:5000\"",
        &["http://[::1]:5000/v2 ns"],
    ),
    (
        "server = \"https://user:pass@b.io/x\"",
        &["https://b.io/x/v2 ns"],
    ),
    // Paths.
    ("server = \"https://b.io/\"", &["https://b.io/v2 ns"]),
    ("server = \"https://b.io/v2\"", &["https://b.io/v2 ns"]),
    ("server = \"https://b.io/v2/\"", &["https://b.io/v2 ns"]),
    ("server = \"https://b.io/x/v2\"", &["https://b.io/x/v2 ns"]),
    (
        "server = \"https://b.io/v2/x\"",
        &["https://b.io/v2/x/v2 ns"],
    ),
    ("server = \"https://b.io/xv2\"", &["https://b.io/xv2/v2 ns"]),
    (
        "server = \"https://b.io//x/./y/../z//\"",
        &["https://b.io/x/z/v2 ns"],
    ),
    (
        "server = \"https://b.io/x?y=z#f\"",
        &["https://b.io/x/v2 ns"],
    ),
    (
        "server = \"https://b.io/x\"\noverride_path = true",
        &["https://b.io/x ns"],
    ),
    (
        "server = \"https://b.io/x/v2/\"\noverride_path = true",
        &["https://b.io/x/v2 ns"],
    ),
    (
        "server = \"https://b.io\"\noverride_path = true",
        &["https://b.io ns"],
    ),
    (
        "server = \"https://b.io/x\"\noverride_path = false",
        &["https://b.io/x/v2 ns"],
    ),
    // Capabilities; those of a root table without a server are dropped.
    (
        "server = \"b.io\"\ncapabilities = []",
        &["https://b.io/v2 ns"],
    ),
    (
        "server = \"b.io\"\ncapabilities = [\"pull\"]",
        &["https://b.io/v2 -resolve ns"],
    ),
    (
        "server = \"b.io\"\ncapabilities = [\"Resolve\"]",
        &["https://b.io/v2 -pull ns"],
    ),
    (
        "server = \"b.io\"\ncapabilities = [\"push\"]",
        &["https://b.io/v2 -pull -resolve ns"],
    ),
    (
        "server = \"b.io\"\ncapabilities = [\"pull\", \"RESOLVE\", \"push\"]",
        &["https://b.io/v2 ns"],
    ),
    (
        "server = \"b.io\"\ncapabilities = [\"pull\", \"referrers\"]",
        &["https://b.io/v2 -resolve ns"],
    ),
    ("capabilities = [\"push\"]", &["https://a.io/v2"]),
    ("capabilities = \"pull\"", &["!", "https://a.io/v2"]),
    ("capabilities = [\"fly\"]", &["!", "https://a.io/v2"]),
    // TLS; relative to the file.
    ("ca = \"x/c.pem\"", &["https://a.io/v2 ca=x/c.pem"]),
    ("ca = [\"c\", \"/d\"]", &["https://a.io/v2 ca=c ca=/d"]),
    ("ca = 5", &["!", "https://a.io/v2"]),
    ("client = \"c\"", &["https://a.io/v2 client=c"]),
    (
        "client = [\"c\", \"/d\"]",
        &["https://a.io/v2 client=c client=/d"],
    ),
    ("client = [[\"c\", \"k\"]]", &["https://a.io/v2 client=c+k"]),
    (
        "client = [[\"c\", \"k\"], [\"/d\", \"/l\"], \"e\"]",
        &["https://a.io/v2 client=c+k client=/d+/l client=e"],
    ),
    ("client = [[\"c\"]]", &["!", "https://a.io/v2"]),
    (
        "client = [[\"c\", \"k\", \"x\"]]",
        &["!", "https://a.io/v2"],
    ),
    ("skip_verify = true", &["https://a.io/v2 skip"]),
    ("skip_verify = \"true\"", &["!", "https://a.io/v2"]),
    // Headers and the time to connect.
    ("[header]\nX-A = \"1\"", &["https://a.io/v2 x-a:1"]),
    (
        "[header]\nX-A = [\"1\", \"2\"]",
        &["https://a.io/v2 x-a:1 x-a:2"],
    ),
    ("[header]\nX-A = []", &["https://a.io/v2"]),
    ("[header]\nX-A = 1", &["!", "https://a.io/v2"]),
    ("header = \"x\"", &["!", "https://a.io/v2"]),
    ("dial_timeout = \"1m0.5s\"", &["https://a.io/v2 dial=60.5"]),
    ("dial_timeout = \"\"", &["https://a.io/v2"]),
    ("dial_timeout = \"5\"", &["!", "https://a.io/v2"]),
    // Hosts: in the order of the file, each with its own settings, before the root table.
    (
        "[host.\"https://z.io\"]\n[host.\"b.io\"]\nskip_verify = true\n[host.\"https://a.io\"]",
        &[
            "https://z.io/v2 ns",
            "https://b.io/v2 skip ns",
            "https://a.io/v2",
            "https://a.io/v2",
        ],
    ),
    (
        "server = \"https://s.io\"\nca = \"c\"\n[host.\"https://m.io\"]\ncapabilities = [\"pull\"]\n[host.\"https://n.io\"]\n[host.\"https://m.io\".header]\nX = \"1\"",
        &[
            "https://m.io/v2 -resolve x:1 ns",
            "https://n.io/v2 ns",
            "https://s.io/v2 ca=c ns",
        ],
    ),
    (
        "[host.\"http://m.io:5000/v2/p\"]\noverride_path = true\ndial_timeout = \"2s\"",
        &["http://m.io:5000/v2/p dial=2 ns", "https://a.io/v2"],
    ),
    // What it does not know is ignored; what it cannot read makes it ignore the file.
    (
        "unknown = 1\n[host.\"m.io\"]\nunknown = 1",
        &["https://m.io/v2 ns", "https://a.io/v2"],
    ),
    ("host = 5", &["!", "https://a.io/v2"]),
    ("server = 5", &["!", "https://a.io/v2"]),
    ("server = \"a b\"", &["!", "https://a.io/v2"]),
    ("[host.\"m.io\"", &["!", "https://a.io/v2"]),
    (
        "server = \"b.io\"\n[host.\"m.io\"]\nca = 1",
        &["!", "https://a.io/v2"],
    ),
];

#[test]
fn each_key_means_what_it_means_to_containerd() {
    for (text, expected) in KEYS {
        assert_eq!(lines("a.io", text, "a.io"), *expected, "{text}");
    }
}

/// A registry, a directory of this name, the text of the file in it, and the one endpoint: a root table without a server
/// stands for the registry, and what a registry is spoken to by depends on its name.
const REGISTRIES: &[(&str, &str, &str, &str)] = &[
    (
        "docker.io",
        "docker.io",
        "",
        "https://registry-1.docker.io/v2",
    ),
    (
        "docker.io",
        "docker.io",
        "server = \"https://docker.io\"",
        "https://docker.io/v2",
    ),
    ("localhost", "localhost", "", "https://localhost/v2 skip"),
    (
        "localhost:443",
        "localhost:443",
        "",
        "https://localhost:443/v2 skip",
    ),
    ("localhost:80", "localhost:80", "", "http://localhost:80/v2"),
    (
        "localhost:5000",
        "localhost:5000",
        "",
        "https|http://localhost:5000/v2 skip",
    ),
    (
        "localhost:5000",
        "localhost:5000",
        "skip_verify = false",
        "https|http://localhost:5000/v2 skip",
    ),
    (
        "127.0.0.1:5000",
        "127.0.0.1_5000_",
        "",
        "https|http://127.0.0.1:5000/v2 skip",
    ),
    (
        "[::1]:5000",
        "[::1]_5000_",
        "ca = \"c\"",
        "https|http://[::1]:5000/v2 skip ca=c",
    ),
    (
        "[::1]:5000",
        "[::1]:5000",
        "ca = \"c\"",
        "https|http://[::1]:5000/v2 skip ca=c",
    ),
    (
        "[fd00::1]:5000",
        "[fd00::1]_5000_",
        "skip_verify = true",
        "https://[fd00::1]:5000/v2 skip",
    ),
    (
        "b.io:5000",
        "b.io_5000_",
        "ca = \"c\"",
        "https://b.io:5000/v2 ca=c",
    ),
    (
        "b.io:5000",
        "b.io:5000",
        "ca = \"c\"",
        "https://b.io:5000/v2 ca=c",
    ),
    (
        "b.io:5000",
        "_default",
        "ca = \"c\"",
        "https://b.io:5000/v2 ca=c",
    ),
    (
        "b.io:5000",
        "_default",
        "server = \"http://m.io\"",
        "http://m.io/v2 ns",
    ),
    // That of another port, or of none, is another registry's.
    ("b.io:5000", "b.io", "ca = \"c\"", "https://b.io:5000/v2"),
    ("b.io", "b.io:443", "ca = \"c\"", "https://b.io/v2"),
];

#[test]
fn the_registry_itself_is_spoken_to_by_its_name() {
    for (registry, directory, text, expected) in REGISTRIES {
        let found = lines(directory, text, registry);
        assert_eq!(found, [*expected], "{registry} in {directory}: {text}");
    }
}
