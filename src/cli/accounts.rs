//! `accounts`: the accounts of `deploy/nats/accounts.conf` and their users as JWTs that an operator's keys sign, in the form of
//! nats-io/jwt version 2. A scoped signing key has the permissions of nodes with the node's name left open, so that one more
//! node is one more signature, of which the broker need not hear.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use clap::{Args, Subcommand};
use nkeys::KeyPair;
use serde_json::{Value, json};

use super::exit::Failure;
use super::output::print;
use crate::domain::name::NodeName;
use crate::wire::subject::{SubjectPrefix, Subjects};

/// What nats-server puts a user's name in the place of.
const NAME: &str = "{{name()}}";
/// The users of roles that are no nodes: their file, and whose they are.
const ROLES: [&str; 4] = ["core", "webhook", "ci", "sys"];

/// `prewarm accounts`.
#[derive(Args)]
pub struct AccountsArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: AccountsCommand,
}

/// What can be done with accounts.
#[derive(Subcommand)]
pub enum AccountsCommand {
    /// Make the keys that are not there, accounts.conf for the servers, and credentials of the roles that are no nodes
    Init {
        /// Where the keys are kept: who has it may do everything
        dir: PathBuf,
    },
    /// Make credentials of nodes, as DIR/nodes/NAME.creds
    Node {
        /// The folder that `init` made
        dir: PathBuf,
        /// The nodes
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
    /// Have the credentials of nodes count no more, once the servers have the new accounts.conf
    Revoke {
        /// The folder that `init` made
        dir: PathBuf,
        /// The nodes
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
}

/// `prewarm accounts`.
///
/// # Errors
/// A name that cannot be a node's, or a file that cannot be read or written.
pub fn run(prefix: &SubjectPrefix, command: &AccountsCommand) -> Result<(), Failure> {
    match command {
        AccountsCommand::Init { dir } => {
            let folder = Folder::make(dir)?;
            folder.configure(&Subjects::new(prefix.clone()))?;
            folder.roles(&Subjects::new(prefix.clone()))?;
            print(&format!("{}\n", dir.join("accounts.conf").display()))
        }
        AccountsCommand::Node { dir, names } => {
            let folder = Folder::open(dir)?;
            for name in &node_names(names)? {
                let file = folder.node(name)?;
                print(&format!("{file}\n"))?;
            }
            Ok(())
        }
        AccountsCommand::Revoke { dir, names } => {
            let folder = Folder::open(dir)?;
            folder.revoke(&node_names(names)?)?;
            folder.configure(&Subjects::new(prefix.clone()))?;
            print(&format!("{}\n", dir.join("accounts.conf").display()))
        }
    }
}

fn node_names(names: &[String]) -> Result<Vec<NodeName>, Failure> {
    let (mut good, mut problems) = (Vec::new(), Vec::new());
    for name in names {
        match name.parse::<NodeName>() {
            Ok(name) => good.push(name),
            Err(error) => problems.push(format!("no node's name: {error}")),
        }
    }
    match problems.is_empty() {
        true => Ok(good),
        false => Err(Failure::input(problems.join("\n"))),
    }
}

/// The folder with the keys: who has it may make users of everything.
struct Folder<'a>(&'a Path);

impl<'a> Folder<'a> {
    fn make(path: &'a Path) -> Result<Self, Failure> {
        for folder in [path.to_owned(), path.join("keys"), path.join("nodes")] {
            let mut builder = fs::DirBuilder::new();
            let made = builder.recursive(true).mode(0o700).create(&folder);
            made.map_err(|error| failed(&folder, &error))?;
        }
        Ok(Self(path))
    }

    fn open(path: &'a Path) -> Result<Self, Failure> {
        if path.join("keys/operator.nk").exists() {
            return Ok(Self(path));
        }
        let problem = format!("{} has no keys of an operator", path.display());
        Err(Failure::input(problem).advise("make them with `prewarm accounts init`"))
    }

    fn read(&self, name: &str) -> Result<Option<String>, Failure> {
        let path = self.0.join(name);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed(&path, &error)),
        }
    }

    /// Readable for its owner alone, and whole or not there.
    fn write(&self, name: &str, text: &str) -> Result<(), Failure> {
        let path = self.0.join(name);
        let half = self.0.join(format!("{name}.new"));
        let mut options = fs::OpenOptions::new();
        let options = options.write(true).create(true).truncate(true).mode(0o600);
        let written = options
            .open(&half)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .and_then(|()| fs::rename(&half, &path));
        written.map_err(|error| failed(&path, &error))
    }

    /// A key of this name, which is made when it is not there.
    fn key(&self, name: &str, new: fn() -> KeyPair) -> Result<KeyPair, Failure> {
        let file = format!("keys/{name}.nk");
        if let Some(seed) = self.read(&file)? {
            return KeyPair::from_seed(seed.trim())
                .map_err(|error| failed(&self.0.join(&file), &error));
        }
        let key = new();
        let seed = key
            .seed()
            .map_err(|error| failed(&self.0.join(&file), &error))?;
        self.write(&file, &format!("{seed}\n"))?;
        Ok(key)
    }

    fn account(&self, name: &str) -> Result<KeyPair, Failure> {
        self.key(name, KeyPair::new_account)
    }

    /// Writes what the servers include.
    fn configure(&self, subjects: &Subjects) -> Result<(), Failure> {
        let operator = self.key("operator", KeyPair::new_operator)?;
        let [core, nodes, webhooks, ci, sys] =
            ["core", "nodes", "webhooks", "ci", "sys"].map(|name| self.account(name));
        let (core, sys) = (core?, sys?);
        let exporter = core.public_key();
        let signer = self.key("nodes-signer", KeyPair::new_account)?;
        let accounts = [
            ("CORE", &core, core_claims(subjects)),
            (
                "NODES",
                &nodes?,
                self.nodes_claims(subjects, &exporter, &signer)?,
            ),
            (
                "WEBHOOKS",
                &webhooks?,
                importing(&exporter, &webhook_imports(subjects)),
            ),
            ("CI", &ci?, importing(&exporter, &ci_imports(subjects))),
            ("SYS", &sys, account(0)),
        ];
        // Written once: nats-server takes no other operator without a restart.
        let token = match self.read("operator.jwt")? {
            Some(token) => token,
            None => {
                let claims =
                    json!({"type": "operator", "version": 2, "system_account": sys.public_key()});
                let token = signed(&operator, &operator.public_key(), "prewarm", claims)?;
                self.write("operator.jwt", &token)?;
                token
            }
        };
        let mut text = format!(
            "# Made by `prewarm accounts`, in the place of deploy/nats/accounts.conf. Nothing here is secret.\n\
             operator: {token}\nsystem_account: {}\nresolver: MEMORY\nresolver_preload {{\n",
            sys.public_key()
        );
        for (name, key, claims) in accounts {
            let token = signed(&operator, &key.public_key(), name, claims)?;
            // A text cannot fail to be written to.
            let _ = writeln!(text, "  # {name}\n  {}: {token}", key.public_key());
        }
        self.write("accounts.conf", &(text + "}\n"))
    }

    fn nodes_claims(
        &self,
        subjects: &Subjects,
        exporter: &str,
        signer: &KeyPair,
    ) -> Result<Value, Failure> {
        let mut claims = importing(exporter, &node_imports(subjects));
        let (publish, subscribe) = node_permissions(subjects);
        claims["signing_keys"] = json!([{
            "kind": "user_scope", "key": signer.public_key(), "role": "node", "template": user(&publish, &subscribe),
        }]);
        let mut revocations = json!({});
        for line in self.read("revoked")?.unwrap_or_default().lines() {
            if let Some((key, at)) = line.split_once(' ') {
                revocations[key] = at.parse::<u64>().unwrap_or(u64::MAX).into();
            }
        }
        claims["revocations"] = revocations;
        Ok(claims)
    }

    /// The users that are no nodes; those that are there already stay.
    fn roles(&self, subjects: &Subjects) -> Result<(), Failure> {
        let prefix = subjects.prefix();
        let of_job = format!("{prefix}.event.job.>");
        for role in ROLES {
            let file = format!("{role}.creds");
            if self.read(&file)?.is_some() {
                continue;
            }
            let account = self.account(if role == "webhook" { "webhooks" } else { role })?;
            let claims = match role {
                "webhook" => user(&webhook_imports(subjects), &["_INBOX.>".into()]),
                "ci" => user(&ci_services(subjects), &["_INBOX.>".into(), of_job.clone()]),
                _ => user(&[], &[]),
            };
            self.credentials(&file, &account, role, typed(claims))?;
        }
        Ok(())
    }

    /// Writes the credentials of a node, and returns where.
    fn node(&self, name: &NodeName) -> Result<String, Failure> {
        let signer = self.key("nodes-signer", KeyPair::new_account)?;
        let account = self.account("nodes")?.public_key();
        // All permissions and limits are the signing key's: a token of it that has some is refused.
        let claims =
            json!({"type": "user", "version": 2, "issuer_account": account, "pub": {}, "sub": {}});
        let file = format!("nodes/{name}.creds");
        self.credentials(&file, &signer, &name.token(), claims)?;
        Ok(self.0.join(file).display().to_string())
    }

    /// Writes a new user's token and key, as `nsc` writes them.
    fn credentials(
        &self,
        file: &str,
        issuer: &KeyPair,
        name: &str,
        claims: Value,
    ) -> Result<(), Failure> {
        let user = KeyPair::new_user();
        let token = signed(issuer, &user.public_key(), name, claims)?;
        let seed = user
            .seed()
            .map_err(|error| failed(&self.0.join(file), &error))?;
        let text = format!(
            "-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        );
        self.write(file, &text)
    }

    /// Notes that the credentials of these nodes that are in the folder, and all that were before for the same keys, count
    /// no more; of all of them, or of none.
    fn revoke(&self, names: &[NodeName]) -> Result<(), Failure> {
        let mut revoked = self.read("revoked")?.unwrap_or_default();
        let mut problems = Vec::new();
        for name in names {
            let file = format!("nodes/{name}.creds");
            match self.read(&file)?.as_deref().and_then(user_key) {
                // A text cannot fail to be written to.
                Some(key) => drop(writeln!(revoked, "{key} {}", seconds())),
                None => {
                    let path = self.0.join(&file);
                    problems.push(format!("{} is not there, or has no key", path.display()));
                }
            }
        }
        if problems.is_empty() {
            return self.write("revoked", &revoked);
        }
        Err(Failure::input(problems.join("\n"))
            .advise("keep a node's credentials here for as long as they count"))
    }
}

/// The public key of whose credentials these are.
fn user_key(credentials: &str) -> Option<String> {
    let seed = credentials.lines().find(|line| line.starts_with("SU"))?;
    Some(KeyPair::from_seed(seed).ok()?.public_key())
}

fn failed(path: &Path, error: &dyn std::fmt::Display) -> Failure {
    Failure::input(format!("cannot use {}: {error}", path.display()))
}

/// Seconds since 1970.
fn seconds() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

/// A token of version 2.
fn signed(issuer: &KeyPair, subject: &str, name: &str, nats: Value) -> Result<String, Failure> {
    let claims = json!({
        "jti": format!("{:032x}", rand::random::<u128>()), "iat": seconds(), "iss": issuer.public_key(), "sub": subject,
        "name": name, "nats": nats,
    });
    let header = json!({"typ": "JWT", "alg": "ed25519-nkey"});
    let [header, claims] = [header, claims].map(|part| URL_SAFE_NO_PAD.encode(part.to_string()));
    let text = format!("{header}.{claims}");
    let signature = issuer
        .sign(text.as_bytes())
        .map_err(|error| Failure::input(format!("cannot sign for {name}: {error}")))?;
    Ok(format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature)))
}

/// An account without exports and imports, and with so much of JetStream: -1 is all, 0 none.
fn account(jetstream: i32) -> Value {
    json!({"type": "account", "version": 2, "limits": {
        "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1, "leaf": -1,
        "mem_storage": jetstream, "disk_storage": jetstream, "streams": jetstream, "consumer": jetstream,
    }})
}

/// What a user may do; nothing named is everything.
fn user(publish: &[String], subscribe: &[String]) -> Value {
    let allow = |subjects: &[String]| match subjects {
        [] => json!({}),
        some => json!({"allow": some}),
    };
    json!({"pub": allow(publish), "sub": allow(subscribe), "subs": -1, "data": -1, "payload": -1})
}

fn typed(mut claims: Value) -> Value {
    claims["type"] = "user".into();
    claims["version"] = 2.into();
    claims
}

fn core_claims(subjects: &Subjects) -> Value {
    let next = next_message(subjects, "*");
    let services = [
        node_imports(subjects),
        webhook_imports(subjects),
        ci_services(subjects),
    ]
    .concat();
    let mut exports: Vec<Value> = services
        .iter()
        .filter(|subject| !is_stream(subject))
        .map(|subject| {
            let answers = if *subject == next { "Stream" } else { "Singleton" };
            json!({"name": subject, "subject": subject, "type": "service", "response_type": answers})
        })
        .collect();
    let prefix = subjects.prefix();
    for subject in [
        format!("{prefix}.revoke.*"),
        format!("{prefix}.event.job.>"),
    ] {
        exports.push(json!({"name": subject, "subject": subject, "type": "stream"}));
    }
    let mut claims = account(-1);
    claims["exports"] = exports.into();
    claims
}

/// An account without JetStream that imports these of the one with this key.
fn importing(exporter: &str, imports: &[String]) -> Value {
    let import = |subject: &String| {
        let kind = if is_stream(subject) {
            "stream"
        } else {
            "service"
        };
        json!({"name": subject, "subject": subject, "account": exporter, "type": kind})
    };
    let mut claims = account(0);
    claims["imports"] = imports.iter().map(import).collect();
    claims
}

/// Whether this is told by CORE; everything else is asked of it.
fn is_stream(subject: &str) -> bool {
    subject.ends_with(".revoke.*") || subject.ends_with(".event.job.>")
}

fn next_message(subjects: &Subjects, node: &str) -> String {
    format!(
        "$JS.API.CONSUMER.MSG.NEXT.{}.{node}",
        subjects.tasks_stream()
    )
}

fn node_imports(subjects: &Subjects) -> Vec<String> {
    let (prefix, tasks) = (subjects.prefix(), subjects.tasks_stream());
    vec![
        next_message(subjects, "*"),
        format!("$JS.ACK.{tasks}.>"),
        format!("$JS.ACK.*.*.{tasks}.>"),
        format!("{prefix}.event.task.>"),
        format!("{prefix}.worker.*"),
        format!("{prefix}.heartbeat.*"),
        format!("{prefix}.progress.>"),
        format!("{prefix}.revoke.*"),
    ]
}

/// What a node's worker may publish, and listen to.
fn node_permissions(subjects: &Subjects) -> (Vec<String>, Vec<String>) {
    let (prefix, tasks) = (subjects.prefix(), subjects.tasks_stream());
    let publish = vec![
        next_message(subjects, NAME),
        format!("$JS.ACK.{tasks}.{NAME}.>"),
        format!("$JS.ACK.*.*.{tasks}.{NAME}.>"),
        format!("{prefix}.event.task.*.{NAME}.*"),
        format!("{prefix}.worker.{NAME}"),
        format!("{prefix}.heartbeat.{NAME}"),
        format!("{prefix}.progress.*.{NAME}.*"),
    ];
    let subscribe = vec![
        format!("_INBOX.{NAME}.>"),
        format!("{prefix}.revoke.{NAME}"),
    ];
    (publish, subscribe)
}

fn webhook_imports(subjects: &Subjects) -> Vec<String> {
    vec![subjects.push()]
}

fn ci_services(subjects: &Subjects) -> Vec<String> {
    let prefix = subjects.prefix();
    ["job.submit", "api.submit", "api.get"]
        .map(|subject| format!("{prefix}.{subject}"))
        .to_vec()
}

fn ci_imports(subjects: &Subjects) -> Vec<String> {
    let mut imports = ci_services(subjects);
    imports.push(format!("{}.event.job.>", subjects.prefix()));
    imports
}
