//! What central knows of an order from events alone, without asking Odoo.

use super::super::Plant;
use super::Real;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::time::{Duration, Instant};

const ORDERS: usize = 100;

#[test]
fn central_joins_orders_with_products_lots_and_sales_from_events_alone() {
    let Some(real) = Real::of_for_long(19) else { return };
    is_joined(&real);
}

#[test]
fn central_joins_orders_of_odoo_14_from_events_alone() {
    let Some(real) = Real::of_for_long(14) else { return };
    is_joined(&real);
}

fn is_joined(real: &Real) {
    let mut plant = real.plant("odoo-joined", "2s", "deletions = \"10s\"\nreconcile = \"30s\"");
    super::super::contracts(&plant.gateway.folder.join("contracts"), "odoo-around", "interval = \"2s\"");
    let config = std::fs::read_to_string(plant.gateway.config()).expect("read");
    let enable = "enable = [\"sales.order\", \"sales.order.line\", \"lot\"]\n";
    std::fs::write(plant.gateway.config(), format!("{enable}{config}")).expect("written");
    plant.gateway.run();
    plant.await_problem("");
    let seed = std::process::id().to_string();
    let made = real.tool("sell").args(["--orders", &ORDERS.to_string(), "--seed", &seed]).output().expect("it runs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let orders: Vec<i64> = serde_json::from_slice(&made.stdout).expect("numbers");
    assert_eq!(orders.len(), ORDERS);
    let truth = truth(real, &orders);
    assert_eq!(truth.len(), ORDERS, "orders of the database");
    assert!(truth.values().all(|row| row.iter().all(|value| !value.is_empty())), "{truth:#?}");
    let start = Instant::now();
    loop {
        let joined = Joined::of(&plant);
        let wrong: Vec<_> = truth
            .iter()
            .map(|(id, row)| (id, row, joined.order(*id)))
            .filter(|(_, row, told)| told.as_ref() != Some(row))
            .collect();
        if wrong.is_empty() {
            println!("{ORDERS} orders are joined, such as {:?}", truth.values().next());
            return;
        }
        let some = &wrong[..wrong.len().min(3)];
        assert!(start.elapsed() < Duration::from_secs(60), "{} of {ORDERS}: {some:#?}", wrong.len());
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// Code, unit, lot, sales order, customer reference, required and produced quantity of an order.
type Row = Vec<String>;

fn truth(real: &Real, orders: &[i64]) -> HashMap<i64, Row> {
    let list: Vec<String> = orders.iter().map(i64::to_string).collect();
    let (unit, lot, sale, quantity) = if real.version < 17 {
        let sale = "join stock_move f on f.production_id = o.id join stock_move_move_rel d on d.move_orig_id = f.id \
            join stock_move t on t.id = d.move_dest_id join sale_order_line n on n.id = t.sale_line_id \
            join sale_order s on s.id = n.order_id";
        ("u.name", "join stock_production_lot l on l.id = o.lot_producing_id", sale, "sum(m.product_uom_qty)")
    } else {
        let lot = "join mrp_production_stock_lot_rel r on r.mrp_production_id = o.id join stock_lot l on l.id = r.stock_lot_id";
        let sale = "join sale_order_line n on n.id = o.sale_line_id join sale_order s on s.id = n.order_id";
        ("u.name ->> 'en_US'", lot, sale, "sum(m.quantity)")
    };
    let rows = real.rows(&format!(
        "select o.id, p.default_code, {unit}, l.name, s.name, s.client_order_ref, o.product_qty::float8, \
         (select {quantity} from stock_move m where m.production_id = o.id and m.state = 'done')::float8 \
         from mrp_production o join product_product p on p.id = o.product_id join uom_uom u on u.id = o.product_uom_id \
         {lot} {sale} where o.id in ({})",
        list.join(", ")
    ));
    rows.into_iter().map(|mut row| (row.remove(0).parse().expect("a number"), row)).collect()
}

/// The last event of each record, by stream.
struct Joined(HashMap<&'static str, HashMap<i64, Value>>);

impl Joined {
    fn of(plant: &Plant) -> Self {
        let streams = ["production.order", "lot", "stock.move", "sales.order", "sales.order.line"];
        let last = |stream: &str| {
            let of_record = plant.events(stream).into_iter().map(|event| event["data"].clone());
            of_record.map(|data| (data["id"].as_i64().expect("a number"), data["record"].clone())).collect()
        };
        Self(streams.iter().map(|stream| (*stream, last(stream))).collect())
    }

    fn record(&self, stream: &str, link: &Value) -> Option<&Value> {
        self.0[stream].get(&link.get("id").unwrap_or(link).as_i64()?)
    }

    /// The line of a sales order that gets what an order makes: the way of versions whose orders do not name it.
    fn delivered_line(&self, order: i64) -> Option<&Value> {
        let moves = &self.0["stock.move"];
        let mut made = moves.values().filter(|record| record["production_id"] == order);
        made.find_map(|record| {
            let next = record["move_dest_ids"].as_array()?.iter().filter_map(Value::as_i64);
            next.filter_map(|id| moves.get(&id)).map(|record| &record["sale_line_id"]).find(|line| !line.is_null())
        })
    }

    fn order(&self, id: i64) -> Option<Row> {
        let order = self.record("production.order", &json!(id))?;
        let lot = self.record("lot", order["lot_producing_ids"].get(0)?)?;
        let line = order.get("sale_line_id").or_else(|| self.delivered_line(id))?;
        let sale = self.record("sales.order", &self.record("sales.order.line", line)?["order_id"])?;
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let number = |value: &Value| value.as_f64().map(|number| number.to_string());
        Some(vec![
            text(&order["product_id"]["default_code"])?,
            text(&order["product_uom_id"]["name"])?,
            text(&lot["name"])?,
            text(&sale["name"])?,
            text(&sale["client_order_ref"])?,
            number(&order["product_qty"])?,
            number(&order["qty_produced"])?,
        ])
    }
}
