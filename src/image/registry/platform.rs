//! Which manifest of an index runs on a platform, as containerd's `platforms.Only` decides
//! (github.com/containerd/platforms, `compare.go` and `database.go`).

use crate::domain::image::Platform;

/// The platforms that `wanted` can run, best first: itself, then older variants, then the 32-bit
/// architecture that the processor runs as well.
pub(super) fn runnable(wanted: &Platform) -> Vec<Platform> {
    let wanted = normalize(wanted);
    let variant = wanted.variant.as_deref();
    let with = |architecture: &str, variant: Option<String>| Platform {
        os: wanted.os.clone(),
        architecture: architecture.into(),
        variant: variant.map(Into::into),
    };
    let mut found = Vec::new();
    match &*wanted.architecture {
        "amd64" => {
            let level: u32 = variant.and_then(number).unwrap_or(1);
            found.extend(
                (2..=level)
                    .rev()
                    .map(|level| with("amd64", Some(format!("v{level}")))),
            );
            found.push(with("amd64", None));
            found.push(with("386", None));
        }
        "arm64" => {
            let (major, minor) = arm64_version(variant.unwrap_or("v8"));
            // v9.N runs all that v8.(N+5) runs (Arm ARM, "Armv9-A architecture").
            let levels = if major == 9 {
                vec![(9, minor), (8, minor + 5)]
            } else {
                vec![(8, minor)]
            };
            for (major, minor) in levels {
                found.extend(
                    (1..=minor)
                        .rev()
                        .map(|minor| with("arm64", Some(format!("v{major}.{minor}")))),
                );
                found.push(with("arm64", (major != 8).then(|| format!("v{major}"))));
            }
            found.extend(
                (5..=8)
                    .rev()
                    .map(|level| with("arm", Some(format!("v{level}")))),
            );
        }
        "arm" => {
            let level = variant.and_then(number).unwrap_or(7);
            found.extend(
                (5..=level)
                    .rev()
                    .map(|level| with("arm", Some(format!("v{level}")))),
            );
        }
        _ => found.push(wanted.clone()),
    }
    found
}

fn number(variant: &str) -> Option<u32> {
    variant
        .strip_prefix('v')?
        .parse()
        .ok()
        .filter(|level| *level <= 16)
}

fn arm64_version(variant: &str) -> (u32, u32) {
    let text = variant.strip_prefix('v').unwrap_or(variant);
    let (major, minor) = text.split_once('.').unwrap_or((text, "0"));
    let minor = minor.parse().ok().filter(|minor| *minor <= 9).unwrap_or(0);
    (if major == "9" { 9 } else { 8 }, minor)
}

/// One spelling for each platform.
pub(super) fn normalize(platform: &Platform) -> Platform {
    let variant = platform
        .variant
        .as_deref()
        .filter(|variant| !variant.is_empty());
    let (architecture, variant) = match (&*platform.architecture, variant) {
        ("i386" | "386", _) => ("386", None),
        ("x86_64" | "x86-64" | "amd64", None | Some("v1")) => ("amd64", None),
        ("x86_64" | "x86-64", other) => ("amd64", other),
        ("aarch64" | "arm64", None | Some("8" | "v8" | "v8.0")) => ("arm64", None),
        ("aarch64" | "arm64", Some("9" | "9.0" | "v9.0")) => ("arm64", Some("v9")),
        ("aarch64", other) => ("arm64", other),
        ("armhf", _) | ("arm", None | Some("7")) => ("arm", Some("v7")),
        ("armel", _) | ("arm", Some("6")) => ("arm", Some("v6")),
        ("arm", Some("5")) => ("arm", Some("v5")),
        ("arm", Some("8")) => ("arm", Some("v8")),
        other => other,
    };
    Platform {
        os: platform.os.clone(),
        architecture: architecture.into(),
        variant: variant.map(Into::into),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(platform: &str) -> Vec<String> {
        runnable(&platform.parse().unwrap())
            .iter()
            .map(|platform| platform.to_string().replacen("linux/", "", 1))
            .collect()
    }

    #[test]
    fn a_platform_runs_itself_first_and_then_what_it_is_compatible_with() {
        assert_eq!(names("linux/amd64"), ["amd64", "386"]);
        assert_eq!(
            names("linux/amd64/v3"),
            ["amd64/v3", "amd64/v2", "amd64", "386"]
        );
        assert_eq!(names("linux/arm/v7"), ["arm/v7", "arm/v6", "arm/v5"]);
        assert_eq!(names("linux/arm"), ["arm/v7", "arm/v6", "arm/v5"]);
        assert_eq!(names("linux/arm/v6"), ["arm/v6", "arm/v5"]);
        assert_eq!(
            names("linux/arm64"),
            ["arm64", "arm/v8", "arm/v7", "arm/v6", "arm/v5"]
        );
        assert_eq!(names("linux/arm64/v8"), names("linux/arm64"));
        assert_eq!(names("linux/aarch64"), names("linux/arm64"));
        assert_eq!(names("linux/s390x"), ["s390x"]);
    }
}
