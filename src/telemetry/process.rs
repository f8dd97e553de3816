//! Metrics every process has: memory, processor time, version.

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Counter, IntGauge, Opts, Registry};

/// A registry with the process's own metrics in it; roles add theirs.
///
/// # Errors
/// A metric's name is taken or not legal.
pub fn registry() -> Result<Registry, prometheus::Error> {
    let registry = Registry::new();
    registry.register(Box::new(ProcessMetrics::new()?))?;
    let version = Opts::new("prewarm_build_info", "1, labelled with the version")
        .const_label("version", env!("CARGO_PKG_VERSION"));
    let build = IntGauge::with_opts(version)?;
    build.set(1);
    registry.register(Box::new(build))?;
    for collector in super::trace::metrics() {
        registry.register(collector)?;
    }
    Ok(registry)
}

/// Read when asked for; names as Prometheus' client libraries have them.
struct ProcessMetrics {
    resident: IntGauge,
    processor: Counter,
}

impl ProcessMetrics {
    fn new() -> Result<Self, prometheus::Error> {
        let resident = "process_resident_memory_bytes";
        let processor = "process_cpu_seconds_total";
        Ok(Self {
            resident: IntGauge::new(resident, "Resident memory in bytes")?,
            processor: Counter::new(processor, "User and system processor time in seconds")?,
        })
    }
}

impl Collector for ProcessMetrics {
    fn desc(&self) -> Vec<&Desc> {
        let mut desc = self.resident.desc();
        desc.extend(self.processor.desc());
        desc
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
        if let Some(usage) = Usage::parse(&stat) {
            let page = u64::try_from(rustix::param::page_size()).unwrap_or(4096);
            let bytes = usage.resident_pages.saturating_mul(page);
            self.resident.set(i64::try_from(bytes).unwrap_or(i64::MAX));
            #[expect(clippy::cast_precision_loss, reason = "ticks of years fit 52 bits")]
            let seconds = usage.ticks as f64 / rustix::param::clock_ticks_per_second() as f64;
            // Two who ask at once would both add; the next look makes up for it, as it adds nothing below zero.
            self.processor
                .inc_by((seconds - self.processor.get()).max(0.0));
        }
        let mut families = self.resident.collect();
        families.extend(self.processor.collect());
        families
    }
}

/// What proc_pid_stat(5) says of a process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Usage {
    ticks: u64,
    resident_pages: u64,
}

impl Usage {
    fn parse(stat: &str) -> Option<Self> {
        // The second field is the program's name in parentheses, which may hold spaces and parentheses.
        let (_, rest) = stat.rsplit_once(')')?;
        let field = |number: usize| rest.split_whitespace().nth(number - 3)?.parse::<u64>().ok();
        Some(Self {
            ticks: field(14)?.checked_add(field(15)?)?,
            resident_pages: field(24)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_name_may_hold_anything() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194304 100 0 0 0 11 22 0 0 20 0 3 0 5000 9999 321 18446744073709551615";
        assert_eq!(
            Usage::parse(stat),
            Some(Usage {
                ticks: 33,
                resident_pages: 321
            })
        );
        assert_eq!(Usage::parse("7 (a) S 1"), None);
    }

    #[test]
    fn a_running_process_uses_memory() {
        let text = prometheus::TextEncoder::new()
            .encode_to_string(&registry().unwrap().gather())
            .unwrap();
        let line = text
            .lines()
            .find(|line| line.starts_with("process_resident_memory_bytes "))
            .unwrap();
        assert!(
            line.rsplit(' ').next().unwrap().parse::<u64>().unwrap() > 0,
            "{line}"
        );
        assert!(text.contains("prewarm_build_info{version="), "{text}");
    }
}
