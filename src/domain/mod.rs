//! Values of the problem: images, jobs, nodes, failures, time.
//!
//! Nothing here does I/O, reads a clock or draws a random number, and nothing here imports another
//! room of the crate. A value that exists is valid: parsing is the only way in. Types whose form on
//! the broker is just their text (`ImageRef`, `NodeName`, …) carry their serde and JSON Schema here;
//! envelopes and manifests live in [`crate::wire`].

pub mod failure;
pub mod image;
pub mod job;
pub mod name;
pub mod node;
pub mod pin;
pub mod platform;
pub mod progress;
pub mod selector;
pub mod status;
pub mod time;
pub mod trace;

/// Implements serde and JSON Schema for a type whose form is the text of its `Display` and `FromStr`.
macro_rules! text_form {
    ($type:ty, $title:literal, $description:literal, $pattern:literal) => {
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }

        impl schemars::JsonSchema for $type {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                $title.into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({
                    "type": "string",
                    "description": $description,
                    "pattern": $pattern,
                })
            }
        }
    };
}
pub(crate) use text_form;
