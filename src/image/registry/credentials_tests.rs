use super::*;

fn password(user: &str) -> Credential {
    Credential::Password {
        user: user.to_owned(),
        password: "p".to_owned(),
    }
}

fn auth(user: &str) -> String {
    STANDARD.encode(format!("{user}:p"))
}

async fn candidates(config: &str, authority: &str, repository: &str) -> Vec<Credential> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.json");
    std::fs::write(&path, config).unwrap();
    let keychain = Keychain::load(None, &[], Provided::default(), Some(&path));
    assert!(keychain.missing.is_empty(), "{:?}", keychain.missing);
    keychain
        .candidates(authority, true, authority, repository)
        .await
}

#[tokio::test]
async fn each_form_of_an_entry_is_read() {
    let config = format!(
        r#"{{"auths":{{
            "a.io":{{"auth":"{}"}},
            "b.io":{{"username":"u","password":"p"}},
            "c.io":{{"identitytoken":"t","auth":"{}"}},
            "d.io":{{"registrytoken":"t"}},
            "e.io":{{}}
        }}}}"#,
        auth("a"),
        auth("x")
    );
    assert_eq!(candidates(&config, "a.io", "r").await, [password("a")]);
    assert_eq!(candidates(&config, "b.io", "r").await, [password("u")]);
    assert_eq!(
        candidates(&config, "c.io", "r").await,
        [Credential::Identity("t".into())]
    );
    assert_eq!(
        candidates(&config, "d.io", "r").await,
        [Credential::Registry("t".into())]
    );
    assert_eq!(candidates(&config, "e.io", "r").await, []);
    assert_eq!(candidates(&config, "f.io", "r").await, []);
}

#[tokio::test]
async fn keys_match_hosts_globs_and_paths_the_longest_first() {
    let config = format!(
        r#"{{"auths":{{
            "*.example.com":{{"auth":"{}"}},
            "https://r.example.com/v2/team":{{"auth":"{}"}},
            "r.example.com":{{"auth":"{}"}},
            "r.example.com:5000":{{"auth":"{}"}},
            "r.example.com/teamwork":{{"auth":"{}"}}
        }}}}"#,
        auth("glob"),
        auth("team"),
        auth("host"),
        auth("port"),
        auth("teamwork")
    );
    assert_eq!(
        candidates(&config, "r.example.com", "team/app").await,
        [password("team"), password("host"), password("glob")]
    );
    assert_eq!(
        candidates(&config, "r.example.com", "teamwork").await,
        [password("teamwork"), password("host"), password("glob")]
    );
    assert_eq!(
        candidates(&config, "r.example.com:5000", "x").await,
        [password("port")]
    );
    assert_eq!(candidates(&config, "a.b.example.com", "x").await, []);
}

#[tokio::test]
async fn docker_hub_is_known_by_all_its_names() {
    let config = format!(
        r#"{{"auths":{{"https://index.docker.io/v1/":{{"auth":"{}"}}}}}}"#,
        auth("hub")
    );
    assert_eq!(
        candidates(&config, "registry-1.docker.io", "library/nginx").await,
        [password("hub")]
    );
}

#[tokio::test]
async fn a_mirror_gets_only_what_names_the_mirror() {
    let directory = tempfile::tempdir().unwrap();
    let secret = directory.path().join("bare");
    std::fs::create_dir(&secret).unwrap();
    std::fs::write(secret.join("username"), "u\n").unwrap();
    std::fs::write(secret.join("password"), "p\n").unwrap();
    std::fs::write(
        directory.path().join("config"),
        format!(r#"{{"auths":{{"a.io":{{"auth":"{}"}}}}}}"#, auth("a")),
    )
    .unwrap();
    let names = ["bare".to_owned(), "config".to_owned()];
    let keychain = Keychain::load(Some(directory.path()), &names, Provided::default(), None);
    assert_eq!(
        keychain.candidates("mirror.io", false, "a.io", "r").await,
        []
    );
    assert_eq!(
        keychain.candidates("a.io", true, "a.io", "r").await,
        [password("u"), password("a")]
    );
}

#[tokio::test]
async fn a_mounted_secret_is_read_in_its_newer_and_its_older_form() {
    let directory = tempfile::tempdir().unwrap();
    let new = format!(r#"{{"auths":{{"a.io":{{"auth":"{}"}}}}}}"#, auth("new"));
    let old = r#"{"https://a.io":{"username":"old","password":"p","email":"o@a.io"}}"#;
    for (secret, key, content) in [
        ("new", ".dockerconfigjson", new.as_str()),
        ("old", ".dockercfg", old),
    ] {
        std::fs::create_dir(directory.path().join(secret)).unwrap();
        std::fs::write(directory.path().join(secret).join(key), content).unwrap();
        let keychain = Keychain::load(
            Some(directory.path()),
            &[secret.to_owned()],
            Provided::default(),
            None,
        );
        let found = keychain.candidates("a.io", true, "a.io", "r").await;
        assert_eq!(found, [password(secret)]);
    }
}

#[test]
fn a_secret_cannot_lead_out_of_its_directory() {
    let directory = tempfile::tempdir().unwrap();
    let secrets = directory.path().join("secrets");
    std::fs::create_dir(&secrets).unwrap();
    std::fs::write(directory.path().join("outside"), r#"{"auths":{}}"#).unwrap();
    for name in ["../outside", "..", ".", "", "absent"] {
        let keychain = Keychain::load(
            Some(&secrets),
            &[name.to_owned()],
            Provided::default(),
            None,
        );
        assert_eq!(keychain.missing.len(), 1, "{name:?} was found");
    }
}

#[test]
fn a_broken_file_is_named_without_its_contents() {
    let directory = tempfile::tempdir().unwrap();
    for content in [
        r#"{"auths":{"a.io":{"auth":"c2VjcmV0"}}}"#,
        r#"{"auths":{"a.io":{"auth":"sEcReT!"}}}"#,
        "sEcReT",
    ] {
        std::fs::write(directory.path().join("s"), content).unwrap();
        let keychain = Keychain::load(
            Some(directory.path()),
            &["s".to_owned()],
            Provided::default(),
            None,
        );
        let [message] = keychain.missing.as_slice() else {
            panic!("{content} was accepted")
        };
        assert!(message.contains("/s:"), "{message}");
        assert!(
            !message.contains("sEcReT") && !message.contains("c2VjcmV0"),
            "{message}"
        );
    }
}

#[test]
fn a_credential_does_not_show_itself() {
    let shown = format!("{:?}", password("alice"));
    assert!(!shown.contains("alice"), "{shown}");
}
