//! resource names
