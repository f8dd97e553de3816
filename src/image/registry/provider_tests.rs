use super::*;

/// A directory of plugins, all of which are the shell, and a configuration.
struct Node {
    folder: tempfile::TempDir,
    plugins: Plugins,
}

const V1: &str = "credentialprovider.kubelet.k8s.io/v1";

impl Node {
    fn new(config: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.yaml");
        std::fs::write(&file, config).unwrap();
        for name in ["one", "two"] {
            std::os::unix::fs::symlink("/bin/sh", folder.path().join(name)).unwrap();
        }
        let plugins = Plugins::new(Some(CredentialProviders {
            config: file,
            bin_dir: folder.path().to_owned(),
        }));
        Self { folder, plugins }
    }

    /// How often a plugin was run that notes it by the script of [`provider`].
    fn runs(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.folder.path().join("runs")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

fn config(providers: &[String]) -> String {
    let kind = "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:\n";
    format!("{kind}{}", providers.concat())
}

/// A plugin that notes each run, with what it was asked, beside itself, and answers.
fn provider(name: &str, images: &str, keep_for: &str, answer: &str) -> String {
    let script = format!(
        r#"request=$(cat); echo "$request $EXTRA $1" >> "${{0%/*}}/runs"; cat <<END
{answer}
END"#
    );
    let script = serde_json::to_string(&script).unwrap();
    format!(
        "- name: {name}\n  matchImages: [{images}]\n  defaultCacheDuration: {keep_for}\n  apiVersion: {V1}\n  \
         args: ['-c', {script}, PLACE/{name}, argument]\n  env: [{{name: EXTRA, value: extra}}]\n"
    )
}

fn answer(kind: &str, duration: &str, auth: &str) -> String {
    format!(
        r#"{{"kind":"CredentialProviderResponse","apiVersion":"{V1}","cacheKeyType":"{kind}","cacheDuration":{duration},"auth":{auth}}}"#
    )
}

/// A node whose plugins know where they are.
fn node(providers: &[String]) -> Node {
    let node = Node::new("");
    let place = node.folder.path().to_str().unwrap();
    let text = config(providers).replace("PLACE", place);
    std::fs::write(node.folder.path().join("config.yaml"), text).unwrap();
    node
}

fn users(credentials: &[Credential]) -> Vec<&str> {
    fn user(credential: &Credential) -> &str {
        match credential {
            Credential::Password { user, .. } => user,
            other => panic!("{other:?}"),
        }
    }
    credentials.iter().map(user).collect()
}

#[tokio::test]
async fn a_plugin_is_told_the_image_and_gives_what_its_answer_names() {
    let auth = r#"{"r.example.com":{"username":"all","password":"p"},"r.example.com/team":{"username":"team","password":"p"},"other.example.com":{"username":"other","password":"p"}}"#;
    let one = provider(
        "one",
        "'*.example.com'",
        "0s",
        &answer("Image", "null", auth),
    );
    let node = node(&[one]);
    let provided = node.plugins.provide("r.example.com/team/app").await;
    assert_eq!(provided.problems, [""; 0]);
    let found = provided.matching(&["r.example.com"], "team/app");
    assert_eq!(users(&found), ["team", "all"]);
    assert_eq!(
        users(&provided.matching(&["mirror.io"], "team/app")),
        [""; 0]
    );
    let wanted = format!(
        r#"{{"apiVersion":"{V1}","kind":"CredentialProviderRequest","image":"r.example.com/team/app"}} extra argument"#
    );
    assert_eq!(node.runs(), [wanted]);
    for image in [
        "r.example.org/app",
        "example.com/app",
        "a.b.example.com/app",
        "r.example.com:5000/app",
    ] {
        let provided = node.plugins.provide(image).await;
        assert!(provided.entries.is_empty(), "{image}");
    }
    assert_eq!(node.runs().len(), 1, "the others are no business of it");
}

#[tokio::test]
async fn answers_are_kept_for_what_and_as_long_as_they_say() {
    let auth = r#"{"*.io":{"username":"u","password":"p"}}"#;
    for (kind, duration, default, runs) in [
        ("Image", "\"1h\"", "0s", [1, 1, 2, 3]),
        ("Registry", "\"1h0m0s\"", "0s", [1, 1, 1, 2]),
        ("Global", "\"1h\"", "0s", [1, 1, 1, 1]),
        ("Global", "null", "10m", [1, 1, 1, 1]),
        ("Global", "null", "0s", [1, 2, 3, 4]),
        ("Global", "\"0s\"", "10m", [1, 2, 3, 4]),
    ] {
        let node = node(&[provider(
            "one",
            "'*.io'",
            default,
            &answer(kind, duration, auth),
        )]);
        for (image, runs) in ["a.io/x", "a.io/x", "a.io/y", "b.io/x"]
            .into_iter()
            .zip(runs)
        {
            let provided = node.plugins.provide(image).await;
            let host = registry(image);
            assert_eq!(users(&provided.matching(&[host], "x")), ["u"]);
            assert_eq!(
                node.runs().len(),
                runs,
                "{kind} {duration} {default}: {image}"
            );
        }
    }
}

#[tokio::test]
async fn many_that_ask_at_once_ask_once() {
    let auth = r#"{"a.io":{"username":"u","password":"p"}}"#;
    let node = node(&[provider(
        "one",
        "a.io",
        "1h",
        &answer("Image", "null", auth),
    )]);
    let asked = (0..20).map(|_| node.plugins.provide("a.io/x"));
    let provided = futures::future::join_all(asked).await;
    assert!(provided.iter().all(|provided| provided.entries.len() == 1));
    assert_eq!(node.runs().len(), 1);
}

#[tokio::test]
async fn of_two_plugins_the_first_has_the_word_and_a_broken_one_holds_up_none() {
    let auth = |user: &str| {
        format!(
            r#"{{"a.io":{{"username":"{user}","password":"sEcReT"}},"{user}.io":{{"username":"{user}","password":"p"}}}}"#
        )
    };
    let two = |answer: &str| provider("two", "a.io", "0s", answer);
    let good = answer("Image", "null", &auth("second"));
    let first = provider(
        "one",
        "a.io",
        "0s",
        &answer("Image", "null", &auth("first")),
    );
    let both = node(&[first, two(&good)]).plugins.provide("a.io/x").await;
    assert_eq!(users(&both.matching(&["a.io"], "x")), ["first"]);
    assert_eq!(users(&both.matching(&["second.io"], "x")), ["second"]);
    for (broken, why) in [
        ("sEcReT", "something else"),
        (
            &*answer("Image", "null", "{}").replace(V1, "v0"),
            "in another apiVersion",
        ),
        (&*answer("Nothing", "null", "{}"), "something else"),
        (&*answer("Image", "\"soon\"", "{}"), "that is none"),
    ] {
        let node = node(&[provider("one", "a.io", "0s", broken), two(&good)]);
        let provided = node.plugins.provide("a.io/x").await;
        assert_eq!(users(&provided.matching(&["a.io"], "x")), ["second"]);
        let [problem] = &provided.problems[..] else {
            panic!("{:?}", provided.problems);
        };
        assert!(
            problem.starts_with("credential provider one ") && problem.contains(why),
            "{problem}"
        );
        assert!(!problem.contains("sEcReT"));
    }
    let absent = provider("absent", "a.io", "0s", &good);
    let provided = node(&[absent]).plugins.provide("a.io/x").await;
    assert!(
        provided.problems[0].contains("cannot be run"),
        "{:?}",
        provided.problems
    );
}

#[tokio::test]
async fn everything_wrong_with_a_configuration_is_told_with_its_place() {
    let text = config(&[
        "- name: ../one\n  matchImages: []\n  apiVersion: v0\n".to_owned(),
        "- name: two\n  matchImages: ['/x']\n  defaultCacheDuration: 1d\n  apiVersion: v0\n"
            .to_owned(),
        "- name: two\n  matchImages: [a.io]\n  defaultCacheDuration: 1h\n  apiVersion: v0\n"
            .to_owned(),
    ]);
    let problems = Node::new(&text).plugins.provide("a.io/x").await.problems;
    for place in [
        "config.yaml: providers[0].name: \"../one\" is no name",
        "providers[0].matchImages: is missing",
        "providers[0].defaultCacheDuration: is missing",
        "providers[0].apiVersion: \"v0\" is none of credentialprovider.kubelet.k8s.io/v1,",
        "providers[1].matchImages: \"/x\" has no host",
        "providers[1].defaultCacheDuration: \"1d\"",
        "providers[2].name: two is there already",
    ] {
        assert!(
            problems.iter().any(|problem| problem.contains(place)),
            "{place}: {problems:#?}"
        );
    }
    let other = Node::new("{apiVersion: v1, kind: Pod}")
        .plugins
        .provide("a.io/x")
        .await;
    assert!(
        other.problems[0].contains("v1 Pod is no"),
        "{:?}",
        other.problems
    );
}

#[tokio::test]
async fn a_directory_is_read_in_the_order_of_its_names_and_anew_when_it_changes() {
    let auth = |user: &str| format!(r#"{{"a.io":{{"username":"{user}","password":"p"}}}}"#);
    let plugin = |name: &str, user: &str| {
        provider(name, "a.io", "1h", &answer("Global", "null", &auth(user)))
    };
    let folder = tempfile::tempdir().unwrap();
    for name in ["one", "two"] {
        std::os::unix::fs::symlink("/bin/sh", folder.path().join(name)).unwrap();
    }
    let configs = folder.path().join("configs");
    std::fs::create_dir(&configs).unwrap();
    let write = |file: &str, text: &str| {
        let text = text.replace("PLACE", folder.path().to_str().unwrap());
        std::fs::write(configs.join(file), text).unwrap();
    };
    let plugins = Plugins::new(Some(CredentialProviders {
        config: configs.clone(),
        bin_dir: folder.path().to_owned(),
    }));
    let user = async || {
        let provided = plugins.provide("a.io/x").await;
        assert_eq!(provided.problems, [""; 0]);
        users(&provided.matching(&["a.io"], "x")).join(" ")
    };
    write("20-b.yml", &config(&[plugin("two", "b")]));
    write("passed-over.txt", "{");
    assert_eq!(user().await, "b");
    write("10-a.yaml", &config(&[plugin("one", "a")]));
    assert_eq!(user().await, "a");
    write("10-a.yaml", &config(&[plugin("one", "changed")]));
    assert_eq!(user().await, "changed", "nothing old is kept");
    let needs_a_pod = config(&[plugin("one", "a")])
        + "  tokenAttributes: {serviceAccountTokenAudience: x, requireServiceAccount: true}\n";
    write("10-a.yaml", &needs_a_pod);
    assert_eq!(user().await, "b");
}

#[test]
fn durations_are_those_of_go() {
    for (text, wanted) in [
        ("0", Some(0)),
        ("0s", Some(0)),
        ("1h30m", Some(5_400_000)),
        ("12h0m0s", Some(43_200_000)),
        ("1.5h", Some(5_400_000)),
        ("300ms", Some(300)),
        ("-1s", None),
        ("1d", None),
        ("1 h", None),
        ("", None),
        ("soon", None),
    ] {
        let millis = provider_config::duration(text).map(|duration| duration.as_millis());
        assert_eq!(millis, wanted, "{text}");
    }
}
