//! The dispatcher's claims, one test each.

mod lease;
