//! What a worker takes from Kubernetes.

use super::Check;
use crate::kubernetes::pod::Pod;
use crate::kubernetes::standing::Choices;

/// The node in Kubernetes.
#[derive(clap::Args, Clone, Default)]
#[command(next_help_heading = "Kubernetes")]
pub struct KubernetesArgs {
    /// Take the node's labels and state from the Kubernetes API: on, off, or auto: in a pod with a token
    #[arg(
        long,
        env = "PREWARM_KUBERNETES",
        value_name = "WHEN",
        default_value = "auto"
    )]
    pub kubernetes: String,
    /// While Kubernetes calls the node NotReady: pull anyway, or wait
    #[arg(
        long,
        env = "PREWARM_WHEN_NOT_READY",
        value_name = "pull|wait",
        default_value = "pull"
    )]
    pub when_not_ready: String,
    /// While the node is cordoned: pull anyway, or wait
    #[arg(
        long,
        env = "PREWARM_WHEN_CORDONED",
        value_name = "pull|wait",
        default_value = "pull"
    )]
    pub when_cordoned: String,
}

impl KubernetesArgs {
    /// Checks the settings: the choices, and the pod if Kubernetes is asked at all.
    pub fn check<'p>(
        &self,
        pod: Option<&'p Pod>,
        check: &mut Check<'_>,
    ) -> Option<Option<(Choices, &'p Pod)>> {
        let not_ready = check.parsed("when-not-ready", Some(&self.when_not_ready));
        let cordoned = check.parsed("when-cordoned", Some(&self.when_cordoned));
        let pod = match (self.kubernetes.trim(), pod) {
            ("auto" | "", pod) => pod,
            ("off", _) => None,
            ("on", Some(pod)) => Some(pod),
            ("on", None) => {
                check.problem(
                    "kubernetes",
                    "this is no worker in a pod with a service account's token (automountServiceAccountToken)",
                );
                return None;
            }
            (other, _) => {
                check.problem(
                    "kubernetes",
                    format!("{other:?} is neither auto, on nor off"),
                );
                return None;
            }
        };
        let choices = Choices {
            not_ready: not_ready?,
            cordoned: cordoned?,
        };
        Some(pod.map(|pod| (choices, pod)))
    }
}
