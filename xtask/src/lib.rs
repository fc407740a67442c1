//! What the demo, the benchmarks and the tests share: private servers and real data.

pub mod mariadb;
