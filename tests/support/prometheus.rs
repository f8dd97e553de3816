//! Prometheus (2.42, of Debian 12), which scrapes and evaluates often.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use super::images::http;
use super::parts;
use super::process::{Process, free_port};
use super::wait::eventually;

/// How long a server may take until it answers.
const START_LIMIT: Duration = Duration::from_secs(30);

/// A Prometheus with a store of its own.
#[derive(Debug)]
pub struct Prometheus {
    process: Process,
    port: u16,
    _dir: TempDir,
}

impl Prometheus {
    /// Starts one that scrapes these ports on 127.0.0.1 as one job, twice a second, with the rules of this file.
    pub async fn start(job: &str, ports: &[u16], rules: &Path) -> Self {
        let dir = parts::temp_dir();
        let targets: Vec<String> = ports
            .iter()
            .map(|port| format!("'127.0.0.1:{port}'"))
            .collect();
        let config = format!(
            "global: {{scrape_interval: 500ms, scrape_timeout: 500ms, evaluation_interval: 500ms}}\nrule_files: ['{}']\nscrape_configs: [{{job_name: {job}, static_configs: [{{targets: [{}]}}]}}]\n",
            rules.display(),
            targets.join(", ")
        );
        let file = dir.path().join("prometheus.yml");
        std::fs::write(&file, config).expect("prometheus' configuration file");
        let port = free_port();
        let mut command = Command::new(parts::program("prometheus", "prometheus"));
        command
            .arg(format!("--config.file={}", file.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                dir.path().join("store").display()
            ))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .env("GOMAXPROCS", "1");
        let log = dir.path().join("log");
        let mut process = Process::spawn("prometheus", &mut command, &log, dir.path());
        eventually("prometheus to be ready", START_LIMIT, async || {
            assert!(
                process.ended().is_none(),
                "it ended; {}",
                process.log_tail()
            );
            let url = format!("http://127.0.0.1:{port}/-/ready");
            let answer = http().get(url).send().await;
            let answer = answer.map_err(|error| format!("{error}; {}", process.log_tail()))?;
            let ready = answer.status().is_success();
            ready.then_some(()).ok_or_else(|| process.log_tail())
        })
        .await;
        Self {
            process,
            port,
            _dir: dir,
        }
    }

    /// The data of an answer of the API at this path.
    pub async fn get(&self, path: &str) -> Result<Value, String> {
        let url = format!("http://127.0.0.1:{}/api/v1/{path}", self.port);
        let answer = http().get(url).send().await;
        let body = answer.map_err(|error| format!("{error}; {}", self.process.log_tail()))?;
        let body = body.bytes().await.map_err(|error| error.to_string())?;
        let body: Value = serde_json::from_slice(&body).map_err(|error| error.to_string())?;
        if body["status"] == "success" {
            Ok(body["data"].clone())
        } else {
            Err(body.to_string())
        }
    }

    /// The values of an expression now, each with its labels.
    pub async fn query(&self, expression: &str) -> Result<Vec<(Value, f64)>, String> {
        let query: String = form_urlencoded::byte_serialize(expression.as_bytes()).collect();
        let data = self.get(&format!("query?query={query}")).await?;
        let value = |sample: &Value| {
            let value = sample["value"][1]
                .as_str()
                .and_then(|text| text.parse().ok());
            value.map(|value| (sample["metric"].clone(), value))
        };
        let samples = data["result"].as_array().into_iter().flatten();
        samples
            .map(|sample| value(sample).ok_or_else(|| format!("{sample} has no value")))
            .collect()
    }
}
