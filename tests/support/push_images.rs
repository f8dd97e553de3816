//! Pushes images made here to a registry on this machine: for the demo, and for trying things out.
//!
//! ```text
//! push-images --registry 127.0.0.1:5000 demo/busybox:1.0=busybox demo/app:1.0=busybox+12x8MiB
//! ```
#![allow(
    dead_code,
    reason = "shares modules with the tests, which use more of them"
)]
#![allow(
    unused_imports,
    reason = "shares modules with the tests, which use more of them"
)]
#![allow(unreachable_pub, reason = "shares modules with the tests")]
#![allow(clippy::expect_used, reason = "shares modules with the tests")]
#![allow(clippy::unwrap_used, reason = "shares modules with the tests")]
#![allow(clippy::print_stdout, reason = "this is what it prints")]

#[path = "images/mod.rs"]
mod images;
#[path = "parts.rs"]
mod parts;

use std::str::FromStr;

use clap::Parser;
use images::{Layer, Recipe};

/// Push images made here to a registry that speaks plain HTTP.
#[derive(Debug, Parser)]
struct Arguments {
    /// The registry, as HOST:PORT.
    #[arg(long, value_name = "HOST:PORT")]
    registry: String,
    /// Each REPOSITORY:TAG=CONTENT, where CONTENT is a sum of `busybox` (Debian's, from `make parts`; it can be run) and
    /// COUNTxSIZE (so many layers of files made up for it, of so many bytes, KiB or MiB), such as
    /// demo/app:1.0=busybox+12x8MiB.
    #[arg(required = true, value_name = "REPOSITORY:TAG=CONTENT")]
    images: Vec<Order>,
}

/// One image to push.
#[derive(Debug, Clone)]
struct Order {
    repository: String,
    tag: String,
    content: Vec<Content>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Content {
    Busybox,
    Layers { count: u64, bytes: usize },
}

impl FromStr for Order {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, content) = text.split_once('=').ok_or("there is no `=`")?;
        let (repository, tag) = name
            .rsplit_once(':')
            .ok_or("there is no `:TAG` before the `=`")?;
        let content = content
            .split('+')
            .map(str::parse)
            .collect::<Result<_, _>>()?;
        Ok(Self {
            repository: repository.to_owned(),
            tag: tag.to_owned(),
            content,
        })
    }
}

impl FromStr for Content {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "busybox" {
            return Ok(Self::Busybox);
        }
        let layers = || {
            let (count, size) = text.split_once('x')?;
            let (size, unit) = match size.strip_suffix("MiB") {
                Some(size) => (size, 1024 * 1024),
                None => size
                    .strip_suffix("KiB")
                    .map_or((size, 1), |size| (size, 1024)),
            };
            let bytes = size.parse::<usize>().ok()?.checked_mul(unit)?;
            Some(Self::Layers {
                count: count.parse().ok()?,
                bytes,
            })
        };
        layers()
            .ok_or_else(|| format!("`{text}` is neither `busybox` nor COUNTxSIZE, such as 12x8MiB"))
    }
}

impl Order {
    fn layers(&self) -> Vec<Layer> {
        // Another repository or tag, other bytes: the layers of two images are not the same by chance.
        let seed = self
            .repository
            .bytes()
            .chain(self.tag.bytes())
            .fold(0, |seed: u64, byte| {
                seed.wrapping_mul(31).wrapping_add(u64::from(byte))
            });
        let one = |content: &Content| match *content {
            Content::Busybox => images::busybox(&parts::program("busybox", "busybox")).layers,
            Content::Layers { count, bytes } => (0..count)
                .map(|number| Layer::generated(seed, number, bytes))
                .collect(),
        };
        self.content.iter().flat_map(one).collect()
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let arguments = Arguments::parse();
    for order in &arguments.images {
        let layers = order.layers();
        let count = layers.len();
        let image = Recipe::new(layers).build();
        let pushed = images::push(&arguments.registry, &order.repository, &order.tag, &image).await;
        let layers = if count == 1 { "layer" } else { "layers" };
        let megabytes = image.size() as f64 / 1e6;
        println!(
            "{}  {count} {layers}, {megabytes:.1} MB, {}",
            pushed.by_tag, pushed.digest
        );
    }
}
