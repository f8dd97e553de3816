//! `check`: broker, dispatcher, containerd, registries and permissions, each with what to do about it.

mod broker;
mod node;
mod runtime;

use std::fmt::Write as _;

use super::Invocation;
use super::args::CheckArgs;
use super::exit::{Exit, Failure};
use super::output::print;
use super::roles;
use super::settings::registry::home;
use crate::domain::image::ImageRef;
use crate::domain::name::NodeName;
use crate::image::containerd::{Containerd, ContainerdConfig, PullLimits};
use crate::image::size::DiskReserve;
use crate::kubernetes::follow;
use crate::kubernetes::pod::Pod;
use crate::kubernetes::standing::Choices;
use crate::telemetry::colour_is_welcome;
use crate::work::run::WorkerError;

/// How good something is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Verdict {
    /// As it should be.
    Good,
    /// It works, and could be better.
    Warning,
    /// It does not work.
    Bad,
}

/// One thing that was looked at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// How good it is.
    pub verdict: Verdict,
    /// What it is about.
    pub about: &'static str,
    /// What was found.
    pub found: String,
    /// What to do about it.
    pub advice: String,
}

impl Finding {
    fn good(about: &'static str, found: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Good,
            about,
            found: found.into(),
            advice: String::new(),
        }
    }

    fn warning(about: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Warning,
            about,
            found: found.into(),
            advice: advice.into(),
        }
    }

    fn bad(about: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Bad,
            about,
            found: found.into(),
            advice: advice.into(),
        }
    }
}

/// `prewarm check`.
///
/// # Errors
/// Bad settings, or something does not work.
pub async fn run(invocation: &Invocation, args: &CheckArgs) -> Result<(), Failure> {
    let mut check = invocation.check();
    let broker = invocation.broker(&mut check);
    let containerd = args.containerd.check(&mut check);
    let pod = Pod::look();
    let kubernetes = args.kubernetes.check(pod.as_ref(), &mut check).flatten();
    let of_pod = kubernetes.and_then(|(_, pod)| pod.node.as_deref());
    let node: Option<NodeName> = check.parsed("node", args.node.as_deref().or(of_pod));
    let registries = args.registries.check(home(), &mut check);
    let mut images = Vec::new();
    for image in &args.image {
        images.extend(check.parsed::<ImageRef>("image", Some(image)));
    }
    let look_at_runtime = match args.runtime.trim() {
        "containerd" => true,
        "simulated" => false,
        other => {
            check.problem(
                "runtime",
                format!("{other:?} is neither containerd nor simulated"),
            );
            false
        }
    };
    let (broker, containerd) = check.done(broker.zip(containerd))?;

    let registry = roles::registry(registries);
    let broker = match &node {
        Some(node) => roles::for_node(broker, node),
        None => broker,
    };
    let mut worst = broker::look(&broker, node.as_ref(), &mut report).await?;
    if let (Some(node), Some((choices, _))) = (&node, kubernetes) {
        let finding = look_at_kubernetes(node, choices).await;
        worst = worst.max(finding.verdict);
        report(&finding)?;
    }
    if look_at_runtime {
        let config = ContainerdConfig {
            address: containerd.address.clone(),
            namespace: containerd.namespace.clone(),
            snapshotter: containerd.snapshotter.clone(),
            min_free_disk: DiskReserve::Percent(0),
            registry: registry.clone(),
            limits: PullLimits::default(),
        };
        let connected = Containerd::connect(config).map_err(WorkerError::Runtime)?;
        worst = worst.max(runtime::look(&containerd, &connected, &mut report).await?);
    }
    for image in &images {
        let finding = look_at_image(&registry, image).await;
        worst = worst.max(finding.verdict);
        report(&finding)?;
    }
    match worst {
        Verdict::Good | Verdict::Warning => Ok(()),
        Verdict::Bad => Err(Failure::told(Exit::Unreachable)),
    }
}

/// Findings are told as they come: some take seconds.
fn report(finding: &Finding) -> Result<(), Failure> {
    print(&line(finding, colour_is_welcome(&std::io::stdout())))
}

/// One line, and one for the advice.
fn line(finding: &Finding, colour: bool) -> String {
    let (word, code) = match finding.verdict {
        Verdict::Good => ("ok  ", "32"),
        Verdict::Warning => ("warn", "33"),
        Verdict::Bad => ("FAIL", "31"),
    };
    let word = if colour {
        format!("\u{1b}[{code}m{word}\u{1b}[0m")
    } else {
        word.to_owned()
    };
    let mut line = format!("{word}  {:<12}  {}\n", finding.about, finding.found);
    if !finding.advice.is_empty() {
        let _ = writeln!(line, "{:<20}{}", "", finding.advice);
    }
    line
}

async fn look_at_image(registry: &crate::image::registry::Registry, image: &ImageRef) -> Finding {
    let resolved = async { registry.repository(image, &[]).await?.resolve(image).await };
    match resolved.await {
        Ok(resolved) => Finding::good("registry", format!("{image} is {}", resolved.digest)),
        Err(failure) => Finding::bad(
            "registry",
            format!("{image}: {failure}"),
            "check the name, hosts.toml in --registry-config-dir, and the credentials in --docker-config",
        ),
    }
}

/// A worker takes no pulls before it knows its node.
async fn look_at_kubernetes(node: &NodeName, choices: Choices) -> Finding {
    match follow::look(node).await {
        Ok(status) => {
            let found = format!("node {node} is {status}");
            match status.waiting(choices) {
                None => Finding::good("kubernetes", found),
                Some(why) => Finding::warning(
                    "kubernetes",
                    format!("{found}: nothing new is released to it"),
                    format!(
                        "it is {why}, and waits for that to end (when-cordoned, when-not-ready)"
                    ),
                ),
            }
        }
        Err(untold) => Finding::bad(
            "kubernetes",
            format!("nothing is known of node {node}: {}", untold.reason),
            untold.advice,
        ),
    }
}

/// Takes what a look found and tells it; keeps the worst.
type Report<'r> = &'r mut dyn FnMut(&Finding) -> Result<(), Failure>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_a_line_and_its_advice_another() {
        assert_eq!(
            line(&Finding::good("broker", "nats-server 2.15.1"), false),
            "ok    broker        nats-server 2.15.1\n"
        );
        assert_eq!(
            line(&Finding::bad("containerd", "no socket", "start it"), false),
            "FAIL  containerd    no socket\n                    start it\n"
        );
        assert!(
            line(&Finding::warning("a", "b", "c"), true).starts_with("\u{1b}[33mwarn\u{1b}[0m  a")
        );
    }
}
