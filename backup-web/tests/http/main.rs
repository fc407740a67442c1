//! What the server promises over HTTP, through the program and a real database: who is let in, what he sees and does, and what nobody can make it do.

mod actions;
mod activity;
mod admin;
mod alerts;
mod client;
mod embedded;
mod events;
mod flask;
mod gate;
mod install;
mod login;
mod operators;
mod platform;
mod proxy;
mod sessions;
mod status;
mod world;
