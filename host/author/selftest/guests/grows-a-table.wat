;; Takes more and more elements for a table
(table $t 1 funcref)
(func (export "refresh") (type $refresh)
    (loop $more (br_if $more (i32.ne (table.grow $t (ref.null func) (i32.const 1000)) (i32.const -1))))
    unreachable)
