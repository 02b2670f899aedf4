//! Checks that have to fail for now. One that passes has to be taken out of its list.

use super::Version;

/// The gateway lacks what they are about.
pub const FEATURES: &[(&[Version], &str)] = &[];

/// The gateway is more lenient than the standard.
pub const FAULTS: &[(&[Version], &str)] = &[];
