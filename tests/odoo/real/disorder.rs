//! What goes wrong in an Odoo over the years, while its orders live: values that are none, hidden and deleted records, SQL,
//! other languages, a company that is withdrawn, a backup that is put back.

use super::super::{Plant, is};
use super::Real;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Names of the orders that something happens to.
const ORDERS: [&str; 7] = ["nan", "date", "hidden", "deleted", "sql", "other", "other-changed"];
const OTHER_COMPANY: &str = "Tests, other company";
const LANGUAGE: &str = "de_DE";

/// Orders that things happen to, until the value is dropped.
pub struct Disorder<'a> {
    real: &'a Real,
    seed: u32,
    pub orders: BTreeMap<&'static str, i64>,
    company: i64,
    viewer: i64,
    product: i64,
    name: String,
    rule: Option<i64>,
}

impl<'a> Disorder<'a> {
    pub fn make(real: &'a Real, seed: u32) -> Self {
        let any = |model: &str, field: &str, value: &str| -> Option<i64> {
            let wanted = json!({"domain": [[field, "=", value]], "limit": 1, "context": {"active_test": false}});
            real.call(&format!("{model}/search"), &wanted)[0].as_i64()
        };
        let language = any("res.lang", "code", LANGUAGE).expect("every Odoo has it");
        real.write("res.lang", language, &json!({"active": true}));
        let company = any("res.company", "name", OTHER_COMPANY);
        let company = company.unwrap_or_else(|| real.create("res.company", &json!({"name": OTHER_COMPANY})));
        let viewer = real.find("res.users", &json!([["login", "=", "viewer"]]));
        real.write("res.users", viewer, &json!({"company_ids": [[4, company]]}));
        let product = real.find("product.product", &json!([["default_code", "=", "P-SKID"]]));
        let name = real.call("product.product/read", &json!({"ids": [product], "fields": ["name"]}));
        let mut disorder = Self {
            real,
            seed,
            orders: BTreeMap::new(),
            company,
            viewer,
            product,
            name: name[0]["name"].as_str().expect("a name").to_owned(),
            rule: None,
        };
        for order in ORDERS {
            let id = disorder.copy(order);
            disorder.orders.insert(order, id);
        }
        disorder
    }

    /// A draft that nobody else touches.
    fn copy(&self, order: &str) -> i64 {
        let seed = self.seed;
        let company =
            if order.starts_with("other") { format!(", 'company_id', {}", self.company) } else { String::new() };
        self.real.sql_now(&format!(
            "insert into mrp_production select r.* from mrp_production o, lateral jsonb_populate_record(o, \
             jsonb_build_object('id', nextval('mrp_production_id_seq'), 'name', 'TROUBLE/{seed}/{order}', \
             'origin', 'TROUBLE-{seed}-{order}', 'create_date', now() at time zone 'utc', \
             'write_date', now() at time zone 'utc'{company})) r \
             where o.id = (select min(id) from mrp_production where state = 'draft' and origin like 'SEED%')"
        ));
        let rows = self.real.rows(&format!("select id from mrp_production where name = 'TROUBLE/{seed}/{order}'"));
        rows[0][0].parse().expect("a number")
    }

    fn sql(&self, order: &str, values: &str) {
        self.real.sql_now(&format!("update mrp_production set {values} where id = {}", self.orders[order]));
    }

    /// Odoo does not delete an order without moves.
    pub fn delete(&self, order: &str) {
        self.real.sql_now(&format!("delete from mrp_production where id = {}", self.orders[order]));
    }

    fn german_name(&self) -> String {
        format!("Pumpenstand {}", self.seed)
    }

    /// What happens in this step; others have nothing.
    pub fn happens(&mut self, step: usize) {
        let real = self.real;
        match step {
            1 => {
                self.sql("nan", "product_qty = 'NaN', write_date = now() at time zone 'utc'");
                self.sql("date", "date_deadline = '20260-01-01', write_date = now() at time zone 'utc'");
            }
            3 => {
                let model = real.find("ir.model", &json!([["model", "=", "mrp.production"]]));
                let domain = format!("[('origin', '!=', 'TROUBLE-{}-hidden')]", self.seed);
                let rule = json!({"name": "tests", "model_id": model, "domain_force": domain});
                self.rule = Some(real.create("ir.rule", &rule));
                self.give_company(false);
            }
            4 => {
                let named =
                    json!({"ids": [self.product], "vals": {"name": self.german_name()}, "context": {"lang": LANGUAGE}});
                real.call("product.product/write", &named);
            }
            5 => {
                self.sql("sql", "priority = '1'");
                self.sql("other-changed", "priority = '1', write_date = write_date - interval '1 hour'");
                self.delete("deleted");
            }
            7 => {
                self.show();
                self.give_company(true);
                self.sql("date", "date_deadline = '2030-01-01', write_date = now() at time zone 'utc'");
            }
            _ => {}
        }
    }

    /// Gives the gateway's account the company, or withdraws it. A call of the account that comes while Odoo commits leaves
    /// the old companies in its cache; another write empties that.
    fn give_company(&self, is_given: bool) {
        let real = self.real;
        let domain = json!({"domain": [["id", "=", self.orders["other"]]]});
        let start = std::time::Instant::now();
        let sees = || real.ask(&real.viewer_key, "mrp.production/search_count", &domain) == i32::from(is_given);
        loop {
            let command = if is_given { 4 } else { 3 };
            // Odoo 14 does not forget what it has cached for companies alone.
            let values = json!({"company_ids": [[command, self.company]], "tz": "UTC"});
            real.write("res.users", self.viewer, &values);
            if sees() && sees() {
                return;
            }
            assert!(start.elapsed().as_secs() < 20, "the account of the gateway has its companies as before");
        }
    }

    fn show(&mut self) {
        if let Some(rule) = self.rule.take() {
            self.real.act("ir.rule", "unlink", rule);
        }
    }

    /// Waits until central has all of it, and sees that nothing was invented.
    pub fn check(&self, plant: &Plant) {
        let told = |order: &str, what: &str, wanted: &dyn Fn(&Value) -> bool| {
            let id = self.orders[order];
            let what = format!("{order}: {what}");
            let event = plant
                .await_event("production.order", &what, |event| event["data"]["id"] == id && wanted(&event["data"]));
            event["data"].clone()
        };
        let nan = told("nan", "a number that is none", &|data| data["invalid"]["product_qty"] == "NaN");
        assert!(nan["record"]["product_qty"].is_null() && nan["record"]["state"] == "draft", "{nan:#}");
        // Odoo 14 itself tells another date.
        let is_told = |data: &Value| match self.real.version {
            14 => data["record"]["date_deadline"] == "9999-01-01T00:00:00Z",
            _ => data["invalid"].get("date_deadline").is_some(),
        };
        told("date", "an impossible date", &is_told);
        told("date", "corrected", &|data| data["record"]["date_deadline"] == "2030-01-01T00:00:00Z");
        told("sql", "written by SQL", &|data| data["record"]["priority"] == "1");
        for order in ["hidden", "other", "other-changed"] {
            told(order, "hidden", &|data| data["event"] == "hidden");
            told(order, "visible", &|data| data["event"] == "visible");
        }
        told("other-changed", "changed", &|data| data["record"]["priority"] == "1");
        told("deleted", "deleted", &|data| data["event"] == "deleted");
        let name = self.german_name();
        plant.await_event("product", "renamed", |event| {
            event["data"]["id"] == self.product && event["data"]["record"]["name"] == name.as_str()
        });
        for (order, id) in self.orders.iter().filter(|(order, _)| **order != "deleted") {
            let deletions = plant.events("production.order").into_iter().filter(|event| is(event, *id, "deleted"));
            assert_eq!(deletions.count(), 0, "{order} was never deleted");
        }
    }
}

impl Drop for Disorder<'_> {
    fn drop(&mut self) {
        self.show();
        self.real.sql_now("delete from mrp_production where name like 'TROUBLE/%'");
        let named = json!({"ids": [self.product], "vals": {"name": self.name}, "context": {"lang": LANGUAGE}});
        self.real.call("product.product/write", &named);
        self.real.write("res.users", self.viewer, &json!({"company_ids": [[3, self.company]]}));
    }
}
