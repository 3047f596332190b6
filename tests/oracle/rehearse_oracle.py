#!/usr/bin/env python3
"""An independent oracle for `flash-sale rehearse`: the same rules with plain dictionaries, nothing shared with it.

    rehearse_oracle.py ORDERS.csv[.gz] --stock N --decisions OUT.ndjson --final-stock OUT.csv

Prints its counts as one JSON object. `cargo test -p flash-sale` compares both, byte for byte.
"""

import argparse
import csv
import gzip
import io
import json
import re
import sys

# Unicode's White_Space, which is not quite what str.strip() takes.
WHITE = "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
INTEGER = re.compile(r"[+-]?[0-9]+(\.0+)?")
SKIPS = ("empty_order", "empty_sku", "empty_quantity", "dirty_quantity")


def parse_args():
    parser = argparse.ArgumentParser()
    parser.add_argument("orders")
    parser.add_argument("--stock", type=int, default=0)
    parser.add_argument("--stock-file")
    parser.add_argument("--cancel-prefix", default="C")
    parser.add_argument("--per-user", type=int)
    parser.add_argument(
        "--columns",
        default="order=InvoiceNo,sku=StockCode,quantity=Quantity,user=CustomerID,time=InvoiceDate",
    )
    parser.add_argument("--decisions", required=True)
    parser.add_argument("--final-stock", required=True)
    return parser.parse_args()


def read_text(path):
    """The file's text; bytes that are no UTF-8 become lone surrogates, so that they can be counted."""
    with open(path, "rb") as file:
        data = file.read()
    if data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)
    if data[:3] == b"\xef\xbb\xbf":
        data = data[3:]
    return data.decode("utf-8", "surrogateescape")


def clean(text):
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace").strip(WHITE)


def is_wrong(text):
    return any("\udc80" <= char <= "\udcff" for char in text)


def usable_rows(args, counts):
    """(order, sku, quantity, user) of every row that is not skipped."""
    columns = dict(part.split("=", 1) for part in args.columns.split(","))
    reader = csv.reader(io.StringIO(read_text(args.orders), newline=""))
    header = [clean(name) for name in next(reader)]
    place = {what: header.index(name) for what, name in columns.items() if name in header}
    for row in reader:
        if not row:
            continue
        counts["rows"] += 1
        counts["wrong_utf8"] += any(is_wrong(field) for field in row)

        def field(what):
            at = place.get(what, -1)
            return clean(row[at]) if 0 <= at < len(row) else ""

        order, sku, quantity = field("order"), field("sku"), field("quantity")
        if order == "":
            counts["empty_order"] += 1
        elif sku == "":
            counts["empty_sku"] += 1
        elif quantity == "":
            counts["empty_quantity"] += 1
        elif not INTEGER.fullmatch(quantity) or not -(2**31) <= int(quantity.split(".")[0]) < 2**31:
            counts["dirty_quantity"] += 1
        else:
            yield order, sku, int(quantity.split(".")[0]), field("user")


def carts(args, counts):
    """(order, user, cancellation, {sku: units}) of every run of rows with one order id."""
    order = user = lines = None
    cancellation = False
    for row_order, sku, quantity, row_user in usable_rows(args, counts):
        if row_order != order:
            if order is not None:
                yield order, user, cancellation, lines
            order, user, lines = row_order, row_user, {}
            cancellation = args.cancel_prefix != "" and order.startswith(args.cancel_prefix)
        if cancellation:
            lines[sku] = lines.get(sku, 0) + abs(quantity)
        elif quantity <= 0:
            counts["not_positive"] += 1
        else:
            lines[sku] = lines.get(sku, 0) + quantity
    if order is not None:
        yield order, user, cancellation, lines


def opening_totals(args):
    if not args.stock_file:
        return {}
    with open(args.stock_file, newline="", encoding="utf-8") as file:
        return {row["sku"].strip(WHITE): int(row["total"]) for row in csv.DictReader(file)}


def main():
    args = parse_args()
    csv.field_size_limit(sys.maxsize)
    counts = dict.fromkeys(("rows", *SKIPS, "not_positive", "wrong_utf8"), 0)
    counts.update(carts=0, reserved=0, refused=0, cancellations=0, returns=0, returns_refused=0)
    totals, sold, bought = opening_totals(args), {}, {}

    def total(sku):
        return totals.get(sku, args.stock)

    def refusal(user, lines):
        """(code, sku) of the first check that fails: every line's limit, then every line's stock."""
        if args.per_user is not None:
            for sku, units in lines.items():
                if bought.get((user, sku), 0) + units > args.per_user:
                    return "user_limit", sku
        for sku, units in lines.items():
            if units > total(sku) - sold[sku]:
                return "sold_out", sku
        return None

    with open(args.decisions, "w", encoding="utf-8", newline="\n") as out:
        for number, (order, user, cancellation, lines) in enumerate(carts(args, counts)):
            for sku in lines:
                sold.setdefault(sku, 0)
            if cancellation:
                counts["cancellations"] += 1
                for sku, units in lines.items():
                    if units == 0:
                        continue
                    if units > sold[sku]:
                        counts["returns_refused"] += 1
                    else:
                        counts["returns"] += 1
                        sold[sku] -= units
                continue
            if not lines:
                continue
            counts["carts"] += 1
            who = user or ("nobody", number)
            failed = refusal(who, lines)
            code, sku = failed or ("reserved", None)
            counts["refused" if failed else "reserved"] += 1
            if not failed:
                for line_sku, units in lines.items():
                    sold[line_sku] += units
                    bought[who, line_sku] = bought.get((who, line_sku), 0) + units
            decision = {"order": order, "decision": code, "sku": sku}
            out.write(json.dumps(decision, ensure_ascii=False, separators=(",", ":")) + "\n")

    with open(args.final_stock, "w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["sku", "total", "available", "reserved", "sold"])
        for sku, units in sold.items():
            writer.writerow([sku, total(sku), total(sku) - units, 0, units])
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
