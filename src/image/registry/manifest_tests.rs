use super::*;

fn digest(n: u8) -> Digest {
    Digest::of(&[n])
}

fn entry(platform: Option<&str>, n: u8) -> String {
    let platform = platform.map_or_else(String::new, |text| {
        let platform: Platform = text.parse().unwrap();
        let variant = platform
            .variant
            .map_or_else(String::new, |variant| format!(r#","variant":"{variant}""#));
        format!(
            r#","platform":{{"os":"{}","architecture":"{}"{variant}}}"#,
            platform.os, platform.architecture
        )
    });
    format!(
        r#"{{"mediaType":"{OCI_MANIFEST}","digest":"{}","size":{n}{platform}}}"#,
        digest(n)
    )
}

fn index(platforms: &[Option<&str>]) -> Index {
    let entries: Vec<String> = platforms
        .iter()
        .zip(1..)
        .map(|(platform, n)| entry(*platform, n))
        .collect();
    let text = format!(
        r#"{{"schemaVersion":2,"manifests":[{}]}}"#,
        entries.join(",")
    );
    match Document::parse("", text.as_bytes()).unwrap() {
        Document::Index(index) => index,
        Document::Manifest(_) => panic!("an index was read as a manifest"),
    }
}

fn chosen(index: &Index, platform: &str) -> Option<u64> {
    index
        .choose(&platform.parse().unwrap())
        .ok()
        .map(|entry| entry.size)
}

#[test]
fn the_best_entry_is_chosen_whatever_the_order() {
    let index = index(&[
        Some("linux/386"),
        Some("linux/arm/v5"),
        Some("linux/arm/v6"),
        Some("linux/arm64/v8"),
        Some("linux/amd64"),
        Some("windows/amd64"),
        Some("unknown/unknown"),
    ]);
    for (platform, size) in [
        ("linux/amd64", Some(5)),
        ("linux/amd64/v3", Some(5)),
        ("linux/386", Some(1)),
        ("linux/arm/v7", Some(3)),
        ("linux/arm/v5", Some(2)),
        ("linux/arm64", Some(4)),
        ("linux/s390x", None),
    ] {
        assert_eq!(chosen(&index, platform), size, "{platform}");
    }
    let failure = index.choose(&"linux/s390x".parse().unwrap()).unwrap_err();
    assert_eq!(failure.kind, FailureKind::NoMatchingPlatform);
    assert!(failure.message.contains("linux/arm64/v8"), "{failure}");
    assert!(!failure.message.contains("unknown"), "{failure}");
}

#[test]
fn an_entry_without_a_platform_is_the_last_resort() {
    let index = index(&[None, Some("linux/amd64")]);
    assert_eq!(chosen(&index, "linux/amd64"), Some(2));
    assert_eq!(chosen(&index, "linux/arm64"), Some(1));
}

fn refused(media_type: &str, text: &str) -> String {
    let failure = Document::parse(media_type, text.as_bytes()).unwrap_err();
    assert_eq!(failure.kind, FailureKind::InvalidReference, "{text}");
    failure.message
}

#[test]
fn what_cannot_be_pulled_is_refused_with_its_reason() {
    assert!(refused("", r#"{"schemaVersion":1,"fsLayers":[]}"#).contains("schema 1"));
    assert!(
        refused(
            "application/vnd.docker.distribution.manifest.v1+prettyjws",
            "{}"
        )
        .contains("schema 1")
    );
    assert!(refused(OCI_MANIFEST, "{").contains("cannot be read"));
    assert!(refused("application/vnd.cncf.thing+json", "{}").contains("vnd.cncf.thing"));
    assert!(refused("", r#"{"layers":[],"manifests":[]}"#).contains("both"));
    assert!(
        refused(
            OCI_MANIFEST,
            &format!(r#"{{"mediaType":"{OCI_INDEX}","manifests":[]}}"#)
        )
        .contains("calls itself")
    );
    let sha512 = format!(
        r#"{{"config":{{"mediaType":"x","digest":"sha512:{}","size":1}},"layers":[]}}"#,
        "0".repeat(128)
    );
    assert!(refused(OCI_MANIFEST, &sha512).contains("not a digest"));
    let negative = format!(
        r#"{{"config":{{"mediaType":"x","digest":"{}","size":-1}},"layers":[]}}"#,
        digest(1)
    );
    assert!(refused(OCI_MANIFEST, &negative).contains("cannot be read"));
}

#[test]
fn a_generic_content_type_is_looked_through() {
    let text = format!(
        r#"{{"mediaType":"{DOCKER_MANIFEST}","config":{{"mediaType":"{DOCKER_CONFIG}","digest":"{}","size":1,"annotations":null}},"layers":[]}}"#,
        digest(1)
    );
    for announced in ["application/json", "text/plain", "", DOCKER_MANIFEST] {
        let (document, kind) = Document::with_media_type(announced, text.as_bytes()).unwrap();
        assert_eq!(kind, DOCKER_MANIFEST);
        assert!(matches!(document, Document::Manifest(manifest) if manifest.is_image()));
    }
}

#[test]
fn chain_ids_are_those_of_the_specification() {
    let config = ImageConfig {
        architecture: String::new(),
        os: String::new(),
        variant: None,
        rootfs: RootFs {
            kind: "layers".into(),
            diff_ids: vec![digest(1), digest(2), digest(3)],
        },
    };
    let chain = config.chain_ids();
    assert_eq!(chain[0], digest(1));
    assert_eq!(
        chain[1],
        Digest::of(format!("{} {}", digest(1), digest(2)).as_bytes())
    );
    assert_eq!(
        chain[2],
        Digest::of(format!("{} {}", chain[1], digest(3)).as_bytes())
    );
}

#[test]
fn a_configuration_has_to_go_with_manifest_and_platform() {
    let manifest = Manifest {
        config: serde_json::from_str(&entry(None, 1)).unwrap(),
        layers: vec![serde_json::from_str(&entry(None, 2)).unwrap()],
    };
    let amd64: Platform = "linux/amd64".parse().unwrap();
    let parse = |text: String| ImageConfig::parse(text.as_bytes(), &manifest, &amd64);
    let of = |os: &str, architecture: &str, layers: &[u8]| {
        let ids: Vec<_> = layers
            .iter()
            .map(|n| format!("\"{}\"", digest(*n)))
            .collect();
        format!(
            r#"{{"os":"{os}","architecture":"{architecture}","rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
            ids.join(",")
        )
    };
    assert!(parse(of("linux", "amd64", &[1])).is_ok());
    assert!(parse(of("linux", "386", &[1])).is_ok());
    assert!(parse(of("", "", &[1])).is_ok());
    let kind = |text| parse(text).unwrap_err().kind;
    assert_eq!(
        kind(of("linux", "arm64", &[1])),
        FailureKind::NoMatchingPlatform
    );
    assert_eq!(
        kind(of("linux", "amd64", &[1, 2])),
        FailureKind::InvalidReference
    );
    assert_eq!(kind("[]".to_owned()), FailureKind::InvalidReference);
}
