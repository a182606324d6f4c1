//! What nemoclaw decides, without doing any of it.
//!
//! Pure: no files, sockets, clocks, environment or threads. The three paths of
//! the product meet here:
//!
//! * (a) `config.json` + policy -> [`plan::Plan`] -> hardened spec, which the
//!   runtime hands to libcontainer and applies in the container's processes;
//! * (b) an accepted connection -> [`decide::Intent`] + [`decide::Caller`] ->
//!   [`decide::Engine::decide`] -> a [`decide::Permit`] or a refusal, recorded
//!   as an [`audit::Event`];
//! * (c) a refusal names the rule that would allow it ([`decide::remedy`]).

#![forbid(unsafe_code)]

pub mod address;
pub mod audit;
pub mod bpf;
mod btf;
pub mod connects;
pub mod control;
pub mod decide;
pub mod devices;
pub mod glob;
pub mod hex;
pub mod http;
pub mod name;
pub mod plan;
pub mod policy;
pub mod seccomp;
pub mod tls;
pub mod verify;
