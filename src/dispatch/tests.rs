//! The dispatcher's claims, one test each, over a perfect broker ([`cell`]).

mod asked;
mod cell;
mod edits;
mod ends;
mod facts;
mod lease;
mod lifecycle;
mod limits;
mod nodes;
mod pinned;
mod pushed;
mod requests;
mod rounds;
mod takeover;
mod traced;
