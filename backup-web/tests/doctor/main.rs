//! The doctor: each of its complaints, brought about by breaking that thing. Whatever it finds, it leaves no trace.

mod diagnosis;
mod machine;
mod servers;
