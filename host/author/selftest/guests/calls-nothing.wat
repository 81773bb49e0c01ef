;; Calls a function that there is not, by way of a table
(table 1 funcref)
(func (export "refresh") (type $refresh) (call_indirect (result i32) (i32.const 0)))
