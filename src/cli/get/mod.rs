//! `get`: records as a table or as data, once or as they change.

mod rows;

use std::collections::BTreeMap;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::args::{GetArgs, Kind, ListFormat};
use super::exit::Failure;
use super::journal::{self, Bucket};
use super::output::{self, DataFormat, print, tell};
use super::{now, text};
use crate::bus::Bus;
use crate::domain::name::{JobName, NodeName};
use crate::domain::time::Timestamp;
use crate::wire::manifest::API_VERSION;
use crate::wire::manifest::rule::PushRule;
use crate::wire::record::{JobRecord, NodeRecord};

/// A record that can be listed.
pub trait Listed: DeserializeOwned + Serialize {
    /// What one is called.
    const WORD: &'static str;
    /// The heading of its table.
    fn heading(wide: bool) -> Vec<String>;
    /// Its row.
    fn row(&self, wide: bool, now: Timestamp) -> Vec<String>;
}

/// `prewarm get`.
///
/// # Errors
/// The name is none, nothing has it, or the broker does not answer.
pub async fn run(bus: &Bus, args: &GetArgs) -> Result<(), Failure> {
    match args.kind {
        Kind::Jobs => {
            let key = key(args.name.as_deref(), |name: JobName| name.token())?;
            list::<JobRecord>(bus, &bus.subjects.jobs_bucket(), key, args).await
        }
        Kind::Nodes => {
            let key = key(args.name.as_deref(), |name: NodeName| name.token())?;
            list::<NodeRecord>(bus, &bus.subjects.nodes_bucket(), key, args).await
        }
        Kind::Rules => {
            let key = key(args.name.as_deref(), |name: JobName| name.token())?;
            list::<PushRule>(bus, &bus.subjects.rules_bucket(), key, args).await
        }
    }
}

fn key<N>(name: Option<&str>, token: impl Fn(N) -> String) -> Result<Option<String>, Failure>
where
    N: std::str::FromStr<Err: std::fmt::Display>,
{
    let parsed = name.map(|name| name.parse().map(&token)).transpose();
    parsed.map_err(|error: N::Err| Failure::input(format!("name: {error}")))
}

async fn list<T: Listed>(
    bus: &Bus,
    bucket: &str,
    key: Option<String>,
    args: &GetArgs,
) -> Result<(), Failure> {
    let mut bucket = Bucket::open(bus, bucket, key.as_deref()).await?;
    let mut records: BTreeMap<String, T> = BTreeMap::new();
    while let Some(change) = bucket.next_stored::<T>().await? {
        match change.record {
            Some(record) => records.insert(change.key, record),
            None => records.remove(&change.key),
        };
    }
    if records.is_empty() && !args.watch {
        if let Some(name) = &args.name {
            return Err(Failure::input(format!("there is no {} {name}", T::WORD)));
        }
        if data_format(args.output).is_none() {
            tell(&format!("there are no {}s", T::WORD));
            return Ok(());
        }
    }
    if !args.watch {
        let records: Vec<T> = records.into_values().collect();
        return print(&whole(&records, args)?);
    }
    watch(bucket, records, args).await
}

/// Everything at once.
fn whole<T: Listed>(records: &[T], args: &GetArgs) -> Result<String, Failure> {
    match (data_format(args.output), records) {
        (Some(format), [record]) if args.name.is_some() => output::document(format, record),
        // As `kubectl` has it, so that tools that take the one take the other.
        (Some(format), records) => {
            let list = json!({"apiVersion": API_VERSION, "kind": "List", "items": records});
            output::document(format, &list)
        }
        (None, records) => {
            let wide = args.output == ListFormat::Wide;
            let mut rows = vec![T::heading(wide)];
            rows.extend(records.iter().map(|record| record.row(wide, now())));
            Ok(text::columns(&rows))
        }
    }
}

/// What is there, then each change: a row, or an item of data.
async fn watch<T: Listed>(
    mut bucket: Bucket,
    records: BTreeMap<String, T>,
    args: &GetArgs,
) -> Result<(), Failure> {
    let wide = args.output == ListFormat::Wide;
    let format = data_format(args.output);
    let mut table = Table::default();
    if format.is_none() {
        let mut rows = vec![T::heading(wide)];
        rows.extend(records.values().map(|record| record.row(wide, now())));
        print(&table.rows(&rows))?;
    } else {
        for record in records.values() {
            print_item(format, record)?;
        }
    }
    drop(records);
    loop {
        let change: journal::Change<T> = bucket.next().await?;
        match (&change.record, format) {
            (Some(record), None) => print(&table.rows(&[record.row(wide, now())]))?,
            (Some(record), format) => print_item(format, record)?,
            (None, _) => tell(&format!(
                "{} {} is gone",
                T::WORD,
                change.key.replace('_', ".")
            )),
        }
    }
}

fn print_item(format: Option<DataFormat>, record: &impl Serialize) -> Result<(), Failure> {
    print(&output::item(format.unwrap_or(DataFormat::Json), record)?)
}

/// Rows that come one after the other and still line up, unless a later one is wider.
#[derive(Default)]
struct Table {
    widths: Vec<usize>,
}

impl Table {
    fn rows(&mut self, rows: &[Vec<String>]) -> String {
        let mut text = String::new();
        for row in rows {
            self.widths.resize(row.len().max(self.widths.len()), 0);
            for (width, cell) in self.widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        for row in rows {
            let cells = row.iter().zip(&self.widths);
            let line: String = cells
                .map(|(cell, width)| format!("{cell:<width$}   "))
                .collect();
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

fn data_format(format: ListFormat) -> Option<DataFormat> {
    match format {
        ListFormat::Table | ListFormat::Wide => None,
        ListFormat::Json => Some(DataFormat::Json),
        ListFormat::Yaml => Some(DataFormat::Yaml),
    }
}
