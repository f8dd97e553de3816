//! `WWW-Authenticate`: what proof a registry wants (RFC 9110, section 11.6.1; the Docker registry
//! token specification).

use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};

/// Longest realm, service or scope that is taken from a challenge, in bytes.
pub const MAX_VALUE_BYTES: usize = 4096;

/// What a registry wants.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Challenge {
    /// User and password with every request.
    Basic,
    /// A token of the token server at `realm`.
    Bearer {
        /// Where the server is: a URL.
        realm: String,
        /// What the token is for.
        service: Option<String>,
        /// What it has to allow.
        scope: Option<String>,
    },
}

/// The challenge to answer: the first that wants a token, else the first that wants a password.
#[must_use]
pub fn choose(headers: &HeaderMap) -> Option<Challenge> {
    let challenges: Vec<Challenge> = headers
        .get_all(WWW_AUTHENTICATE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(parse)
        .collect();
    challenges
        .iter()
        .find(|challenge| matches!(challenge, Challenge::Bearer { .. }))
        .or_else(|| challenges.first())
        .cloned()
}

/// The challenges of one header line, those of other schemes left out.
fn parse(line: &str) -> Vec<Challenge> {
    let mut rest = line.trim();
    let mut challenges = Vec::new();
    while !rest.is_empty() {
        let (scheme, after) = rest.split_at(rest.find([' ', ',']).unwrap_or(rest.len()));
        let (parameters, after) = parameters(after);
        let value = |name: &str| {
            parameters
                .iter()
                .find(|(key, value)| {
                    key.eq_ignore_ascii_case(name) && value.len() <= MAX_VALUE_BYTES
                })
                .map(|(_, value)| value.clone())
                .filter(|value| !value.is_empty())
        };
        if scheme.eq_ignore_ascii_case("basic") {
            challenges.push(Challenge::Basic);
        } else if scheme.eq_ignore_ascii_case("bearer")
            && let Some(realm) = value("realm")
        {
            challenges.push(Challenge::Bearer {
                realm,
                service: value("service"),
                scope: value("scope"),
            });
        }
        rest = after;
    }
    challenges
}

/// Reads `name=value` pairs up to the next scheme, and says what is left.
fn parameters(text: &str) -> (Vec<(String, String)>, &str) {
    let mut found = Vec::new();
    let mut rest = text.trim_start_matches([' ', ',', '\t']);
    loop {
        let name_len = rest.find(['=', ' ', ',', '"']).unwrap_or(rest.len());
        let after = rest[name_len..].trim_start();
        let Some(after) = after.strip_prefix('=').filter(|_| name_len > 0) else {
            return (found, rest);
        };
        let (value, after) = value(after.trim_start());
        found.push((rest[..name_len].to_owned(), value));
        rest = after.trim_start_matches([' ', ',', '\t']);
    }
}

/// A quoted string with its escapes undone, or a token.
fn value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            c => value.push(c),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        Challenge::Bearer {
            realm: realm.to_owned(),
            service: service.map(str::to_owned),
            scope: scope.map(str::to_owned),
        }
    }

    #[test]
    fn challenges_of_real_registries_are_read() {
        for (line, expected) in [
            (
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/nginx:pull""#,
                bearer(
                    "https://auth.docker.io/token",
                    Some("registry.docker.io"),
                    Some("repository:library/nginx:pull"),
                ),
            ),
            (
                r#"bearer realm="https://a/t", scope="repository:a/b:pull,push", error="invalid_token""#,
                bearer("https://a/t", None, Some("repository:a/b:pull,push")),
            ),
            (
                r#"Bearer realm=https://a/t,service=x"#,
                bearer("https://a/t", Some("x"), None),
            ),
            (
                r#"Bearer realm="https://a/\"t\"""#,
                bearer("https://a/\"t\"", None, None),
            ),
            (
                r#"Basic realm="https://x.dkr.ecr.amazonaws.com/",service="ecr""#,
                Challenge::Basic,
            ),
            ("Basic", Challenge::Basic),
            (
                r#"Basic realm="x", Bearer realm="https://a/t""#,
                bearer("https://a/t", None, None),
            ),
            (r#"Negotiate abc==, Basic realm="x""#, Challenge::Basic),
        ] {
            let mut headers = HeaderMap::new();
            headers.append(WWW_AUTHENTICATE, line.parse().unwrap());
            assert_eq!(choose(&headers), Some(expected), "{line}");
        }
    }

    #[test]
    fn a_token_is_preferred_over_a_password_across_lines() {
        let mut headers = HeaderMap::new();
        headers.append(WWW_AUTHENTICATE, "Basic realm=\"x\"".parse().unwrap());
        headers.append(
            WWW_AUTHENTICATE,
            "Bearer realm=\"https://a/t\"".parse().unwrap(),
        );
        assert_eq!(choose(&headers), Some(bearer("https://a/t", None, None)));
    }

    #[test]
    fn what_is_no_challenge_is_none() {
        for line in [
            "",
            "Bearer",
            "Bearer realm=\"\"",
            "Digest realm=\"x\"",
            ",,, =",
            "\"",
            "=\"x",
        ] {
            let mut headers = HeaderMap::new();
            headers.append(WWW_AUTHENTICATE, line.parse().unwrap());
            assert_eq!(choose(&headers), None, "{line}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_line_is_read_to_its_end(line in "[ -~]{0,80}") {
            parse(&line);
        }
    }
}
