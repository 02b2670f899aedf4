//! The contracts that read from an Odoo.

use crate::contract::odoo::Section;
use crate::contract::{Contract, Contracts, SourceKind};
use std::sync::Arc;

/// The contracts of an Odoo source, with their `odoo` sections.
pub(super) fn sections<'a>(
    contracts: &'a Contracts,
    source: &'a str,
) -> impl Iterator<Item = (&'a Arc<Contract>, &'a Section)> {
    contracts
        .iter()
        .filter(move |contract| contract.source() == SourceKind::Odoo && contract.is_for(source))
        .filter_map(|contract| Some((contract, contract.odoo.as_ref()?)))
}
