//! The rights that the gateway's account needs, in the format that Odoo imports.
//!
//! Promise: the file grants read access to the models of the contracts, and nothing else.

use super::config::Config;
use super::sections::sections;
use crate::contract::Contracts;
use crate::contract::odoo::{Names, Section};
use std::collections::BTreeSet;

/// The rights of an account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rights {
    /// Name of the group that has them.
    pub group: String,
    /// A file for *Settings, Users & Companies, Groups, Import records*.
    pub csv: String,
    /// Models that this version of Odoo may lack, so that they are left out.
    pub left_out: Vec<String>,
    /// Links whose records the contracts read too, and whose model only Odoo knows.
    pub unknown_links: Vec<String>,
}

/// The first version with the newer names of models: alternatives in contracts begin with them.
const VERSION_NEW_NAMES: u32 = 16;
/// The first version that has the models which a contract marks as optional; some of them in Odoo Enterprise alone.
const VERSION_OPTIONAL: u32 = 18;

/// The models that well-known links lead to.
const LINKS: [(&str, &str); 19] = [
    ("blocked_by_operation_ids", "mrp.routing.workcenter"),
    ("bom_line_ids", "mrp.bom.line"),
    ("byproduct_ids", "mrp.bom.byproduct"),
    ("company_id", "res.company"),
    ("currency_id", "res.currency"),
    ("location_dest_id", "stock.location"),
    ("location_id", "stock.location"),
    ("lot_id", "stock.lot"),
    ("lot_producing_ids", "stock.lot"),
    ("move_dest_ids", "stock.move"),
    ("operation_ids", "mrp.routing.workcenter"),
    ("partner_id", "res.partner"),
    ("product_id", "product.product"),
    ("product_tmpl_id", "product.template"),
    ("product_uom", "uom.uom"),
    ("product_uom_id", "uom.uom"),
    ("scrap_reason_tag_ids", "stock.scrap.reason.tag"),
    ("uom_id", "uom.uom"),
    ("workcenter_id", "mrp.workcenter"),
];

/// The rights for the contracts of a source, in an Odoo of this version. `gateway` is part of the name of the group.
pub fn rights(config: &Config, contracts: &Contracts, gateway: &str, version: u32) -> Rights {
    let (mut models, mut left_out, mut unknown_links) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for (_, section) in sections(contracts, &config.name) {
        let model = name_in(&section.model, version).to_owned();
        let is_there = !section.model.is_optional || version >= VERSION_OPTIONAL;
        if is_there { &mut models } else { &mut left_out }.insert(model);
        for link in linked(section) {
            match LINKS.iter().find(|(name, _)| *name == link) {
                Some((_, "stock.lot")) if version < VERSION_NEW_NAMES => models.insert("stock.production.lot".into()),
                Some((_, "stock.scrap.reason.tag")) if version < VERSION_OPTIONAL => false,
                Some((_, model)) => models.insert((*model).to_owned()),
                None => unknown_links.insert(link.to_owned()),
            };
        }
    }
    // The texts of a product are those of its template.
    if models.contains("product.product") {
        models.insert("product.template".into());
    }
    let group = format!("Forebay {gateway}: read");
    let id: String = gateway.chars().map(|letter| if letter.is_ascii_alphanumeric() { letter } else { '_' }).collect();
    let mut rows = vec![
        ["id", "name", "implied_ids/id", "model_access/id", "model_access/name", "model_access/model_id"]
            .map(str::to_owned)
            .to_vec(),
    ];
    rows[0].push("model_access/perm_read".into());
    for (index, model) in models.iter().enumerate() {
        let of_group = |text: String| if index == 0 { text } else { String::new() };
        rows.push(vec![
            of_group(format!("forebay_{id}_read")),
            of_group(group.clone()),
            of_group("base.group_user".into()),
            format!("forebay_{id}_{}", model.replace('.', "_")),
            format!("Forebay {gateway}: {model}"),
            model.clone(),
            "1".into(),
        ]);
    }
    let csv = rows.iter().map(|row| row.iter().map(|cell| quoted(cell)).collect::<Vec<_>>().join(",") + "\n").collect();
    Rights { group, csv, left_out: left_out.into_iter().collect(), unknown_links: unknown_links.into_iter().collect() }
}

/// Alternatives begin with the newest name.
fn name_in(names: &Names, version: u32) -> &str {
    let newest = (version >= VERSION_NEW_NAMES).then(|| names.first());
    newest.or(names.all().last()).unwrap_or_default()
}

/// The links whose records are read: those with fields of linked records, and lists, which Odoo reads with the rights of
/// the account. The name of a single record needs no right.
fn linked(section: &Section) -> impl Iterator<Item = &str> {
    let lists = section.fields.iter().map(Names::first).filter(|field| field.ends_with("_ids"));
    section.linked.keys().map(String::as_str).chain(lists)
}

fn quoted(cell: &str) -> String {
    format!("\"{}\"", cell.replace('"', "\"\""))
}
