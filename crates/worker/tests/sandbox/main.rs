//! What commands can and cannot do in a sandbox, tried with real ones.

mod support;

mod outcome;
