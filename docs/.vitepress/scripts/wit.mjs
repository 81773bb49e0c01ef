// Writes policy-reference.md from wit/policy.wit: every interface, function, type, field and case, with its comment. It reads
// as much of WIT's grammar as the contract uses, and stops at anything else. `--check` writes nothing, and fails where the page
// is not what the contract says.

import { readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { docs, root } from '../lib/outside.mjs'

const source = readFileSync(path.join(root, 'wit/policy.wit'), 'utf8')
const file = path.join(docs, 'policy-reference.md')
const page = print(parse(source))
if (process.argv.includes('--check')) {
  if (readFileSync(file, 'utf8') !== page) {
    console.error('error: docs/policy-reference.md is not what wit/policy.wit says\n\nhint: `npm run generate`, in docs, writes it anew')
    process.exit(1)
  }
} else {
  writeFileSync(file, page)
}

// --- What the contract says -------------------------------------------------------------------------------------------------

function parse(source) {
  const tokens = []
  const grammar = /\s+|\/\/\/ ?(?<doc>[^\n]*)|\/\/[^\n]*|(?<word>[A-Za-z%_][\w-]*(?::[\w-]+(?:\/[\w-]+)?)?(?:@\d+\.\d+\.\d+)?)|(?<mark>->|[{}()<>:;,.=_])/y
  while (grammar.lastIndex < source.length) {
    const at = grammar.lastIndex
    const found = grammar.exec(source)
    if (found === null) stop(source, at)
    const { doc, word, mark } = found.groups
    if (doc !== undefined) tokens.push({ kind: 'doc', text: doc, at })
    else if (word !== undefined || mark !== undefined) tokens.push({ kind: 'mark', text: word ?? mark, at })
  }

  let next = 0
  const peek = () => tokens[next]?.text
  const take = (expected) => {
    const token = tokens[next++]
    if (token === undefined || token.kind === 'doc' || (expected !== undefined && token.text !== expected)) {
      stop(source, token?.at ?? source.length, expected)
    }
    return token.text
  }
  const comment = () => {
    const lines = []
    while (tokens[next]?.kind === 'doc') lines.push(tokens[next++].text)
    return lines
  }
  const type = () => {
    const name = take()
    if (peek() !== '<') return [name]
    take('<')
    const parts = [type()]
    while (peek() === ',') {
      take(',')
      parts.push(type())
    }
    take('>')
    return [name, ...parts]
  }
  const func = (name, doc) => {
    take('(')
    const parameters = []
    while (peek() !== ')') {
      const parameter = take()
      take(':')
      parameters.push({ name: parameter, type: type() })
      if (peek() === ',') take(',')
    }
    take(')')
    let result
    if (peek() === '->') {
      take('->')
      result = type()
    }
    take(';')
    return { kind: 'function', name, doc, parameters, result }
  }
  /** What stands between braces, one after the other, each with its comment. */
  const block = (one) => {
    take('{')
    const all = []
    for (;;) {
      const doc = comment()
      if (peek() === '}') break
      const found = one(doc)
      if (found !== undefined) all.push(found)
    }
    take('}')
    return all
  }
  const listed = (one) => (doc) => {
    const found = one(doc)
    if (peek() !== '}') take(',')
    return found
  }
  const item = (doc) => {
    const word = take()
    if (word === 'use') {
      while (take() !== ';');
      return undefined
    }
    if (word === 'type') {
      const name = take()
      take('=')
      const alias = type()
      take(';')
      return { kind: 'type', name, doc, alias }
    }
    if (word === 'record') {
      const name = take()
      const fields = block(listed((doc) => {
        const field = take()
        take(':')
        return { name: field, doc, type: type() }
      }))
      return { kind: 'record', name, doc, fields }
    }
    if (word === 'variant' || word === 'enum') {
      const name = take()
      const cases = block(listed((doc) => {
        const one = { name: take(), doc }
        if (word === 'variant' && peek() === '(') {
          take('(')
          one.type = type()
          take(')')
        }
        return one
      }))
      return { kind: word, name, doc, fields: cases }
    }
    if (word === 'resource') {
      const name = take()
      const methods = block((doc) => {
        const method = take()
        take(':')
        take('func')
        return func(method, doc)
      })
      return { kind: 'resource', name, doc, methods }
    }
    take(':')
    take('func')
    return func(word, doc)
  }

  const contract = { doc: comment(), interfaces: [], worlds: [] }
  take('package')
  contract.name = take()
  take(';')
  while (next < tokens.length) {
    const doc = comment()
    const word = take()
    if (word === 'interface') {
      contract.interfaces.push({ name: take(), doc, items: block(item) })
    } else if (word === 'world') {
      const name = take()
      const lines = block(() => {
        const line = [take(), take()]
        take(';')
        return line
      })
      contract.worlds.push({ name, doc, lines })
    } else {
      stop(source, tokens[next - 1].at)
    }
  }
  return contract
}

function stop(source, at, expected) {
  const line = source.slice(0, at).split('\n').length
  const wanted = expected === undefined ? '' : `, where \`${expected}\` should be`
  throw new Error(`wit/policy.wit:${line}: cannot read \`${source.slice(at, at + 30).split('\n')[0]}\`${wanted}; teach docs/.vitepress/scripts/wit.mjs`)
}

// --- The page ---------------------------------------------------------------------------------------------------------------

function print(contract) {
  const places = new Map()
  for (const { name, items } of contract.interfaces) {
    for (const item of items) if (item.kind !== 'function') places.set(item.name, `${name}.${item.name}`)
  }

  const escaped = (text) => text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;')
  const typed = ([name, ...parts]) => {
    const place = places.get(name)
    const head = place === undefined ? escaped(name) : `<a href="#${place}">${name}</a>`
    return parts.length === 0 ? head : `${head}&lt;${parts.map(typed).join(', ')}&gt;`
  }
  const code = (html) => `<code>${html}</code>`
  /** Comments are Markdown; outside of quotes nothing in them is HTML. */
  const prose = (line) => line.split('`').map((part, at) => (at % 2 === 0 ? escaped(part) : part)).join('`')
  const paragraphs = (doc) => doc.map(prose).join('\n').split(/\n{2,}/).filter((it) => it !== '')
  const cell = (doc) => doc.map(prose).join(' ').replaceAll('|', '\\|').trim()
  const signature = ({ parameters, result }) => {
    const inside = parameters.map(({ name, type }) => `${name}: ${typed(type)}`).join(', ')
    return code(`(${inside})${result === undefined ? '' : ` -&gt; ${typed(result)}`}`)
  }

  const out = []
  const say = (...lines) => out.push(...lines, '')
  say('<!-- Made from wit/policy.wit by docs/.vitepress/scripts/wit.mjs; change it there. -->')
  say('# Policy reference')
  say(
    `The contract \`${contract.name}\`, from [\`wit/policy.wit\`](../wit/policy.wit): what a policy is told, what it may ask for, and`,
    'what it must answer. [authors.md](authors.md) says how a policy is written, [contract.md](contract.md) what is promised about this one.',
  )
  paragraphs(contract.doc).forEach((it) => say(it))

  for (const world of contract.worlds) {
    say(`<a id="${world.name}"></a>`, '', `## world \`${world.name}\``)
    paragraphs(world.doc).forEach((it) => say(it))
    say('| | |', '| --- | --- |', ...world.lines.map(([verb, name]) => `| ${verb} | [\`${name}\`](#${name}) |`))
  }
  const kinds = { function: 'functions', type: 'types', record: 'types', variant: 'types', enum: 'types', resource: 'types' }
  for (const { name, doc, items } of contract.interfaces) {
    say(`<a id="${name}"></a>`, '', `## interface \`${name}\``)
    paragraphs(doc).forEach((it) => say(it))
    const of = (kind) => items.filter((item) => kinds[item.kind] === kind).map((item) => `[\`${item.name}\`](#${name}.${item.name})`)
    for (const kind of ['functions', 'types']) {
      if (of(kind).length > 0) say(`${kind[0].toUpperCase()}${kind.slice(1)}: ${of(kind).join(', ')}`)
    }
    for (const item of items) {
      say(`<a id="${name}.${item.name}"></a>`, '', `### ${item.kind} \`${item.name}\``)
      if (item.kind === 'function') say(signature(item))
      if (item.kind === 'type') say(code(`= ${typed(item.alias)}`))
      paragraphs(item.doc).forEach((it) => say(it))
      if (item.kind === 'resource') {
        const rows = item.methods.map((it) => `| \`${it.name}\` | ${signature(it)} | ${cell(it.doc)} |`)
        say('| method | | |', '| --- | --- | --- |', ...rows)
      }
      if (item.kind === 'record') {
        const rows = item.fields.map((it) => `| \`${it.name}\` | ${code(typed(it.type))} | ${cell(it.doc)} |`)
        say('| field | type | |', '| --- | --- | --- |', ...rows)
      }
      if (item.kind === 'variant') {
        const rows = item.fields.map((it) => `| \`${it.name}\` | ${it.type === undefined ? '' : code(typed(it.type))} | ${cell(it.doc)} |`)
        say('| case | with | |', '| --- | --- | --- |', ...rows)
      }
      if (item.kind === 'enum') {
        say('| case | |', '| --- | --- |', ...item.fields.map((it) => `| \`${it.name}\` | ${cell(it.doc)} |`))
      }
    }
  }
  return out.join('\n').trimEnd() + '\n'
}
