// Writes http.md from the description of the HTTP interface, which the program makes of its own routes:
// `REFIT=/path/to/refit npm run http`. `--check` writes nothing, and fails where the page is not what that program says. A file that
// holds the description (`refit openapi > FILE`) may be named instead of a program.

import { execFileSync } from 'node:child_process'
import { readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { docs } from '../lib/outside.mjs'

const argument = process.argv.slice(2).find((it) => !it.startsWith('--'))
const program = process.env.REFIT
if (!argument && !program) {
  console.error('error: no program is named\n\nhint: build one (`cargo build --package refit`), and `REFIT=../target/debug/refit npm run http`')
  process.exit(2)
}
const document = JSON.parse(argument ? readFileSync(argument, 'utf8') : execFileSync(program, ['openapi'], { env: {}, encoding: 'utf8' }))
const schemas = document.components.schemas

// Outside of quotes an angle bracket would begin HTML.
const prose = (text = '') => text.split('`').map((part, at) => (at % 2 === 0 ? part.replaceAll('<', '&lt;').replace(/(?<!\\)_/g, '\\_').replace(/\]\(([^)]*)\)/g, (it) => it.replaceAll('\\_', '_')) : part)).join('`')
const cell = (text = '') => prose(text).replaceAll('|', '\\|').replace(/\s*\n\s*/g, ' ').trim()
const named = (reference) => reference.split('/').pop()
const link = (name) => `[${name}](#schema.${name})`

/** What a value may be, in words. */
function type(schema) {
  if (schema === undefined) return 'anything'
  if (schema.$ref) return link(named(schema.$ref))
  if (schema.oneOf && schema.oneOf.some((it) => it.type === 'null')) return type(schema.oneOf.find((it) => it.type !== 'null'))
  if (schema.allOf?.length === 1) return type(schema.allOf[0])
  if (schema.enum) return schema.enum.filter((it) => it !== null).map((it) => `\`${it}\``).join(', ')
  const [kind] = [schema.type].flat().filter((it) => it !== 'null')
  if (kind === 'array') return `array of ${type(schema.items)}`
  if (kind === 'integer') return 'number'
  if (schema.contentSchema) return `string, JSON of ${type(schema.contentSchema)}`
  if (kind === 'string' && schema.format === 'date-time') return 'string, RFC 3339 in UTC'
  return kind ?? 'anything'
}

/** Fields of an object, those of its parts included, in order. */
function fields(schema) {
  if (schema.$ref) return fields(schemas[named(schema.$ref)])
  if (schema.allOf) return schema.allOf.flatMap(fields)
  const required = new Set(schema.required ?? [])
  return Object.entries(schema.properties ?? {}).map(([name, it]) => ({ name, schema: it, optional: !required.has(name) }))
}

const described = (schema) => schema.description ?? (schema.oneOf ?? schema.allOf ?? []).map((it) => it.description).find((it) => it) ?? ''
const rows = (list) => list.map((it) => `| \`${it.name}\` | ${type(it.schema)}${it.optional ? ', optional' : ''} | ${cell(described(it.schema))} |`)

const out = []
const say = (...lines) => out.push(...lines, '')
say('<!-- Made from `refit openapi` by docs/.vitepress/scripts/http.mjs: `REFIT=/path/to/refit npm run http`, in docs. -->')
say('# HTTP interface')
say(document.info.description)
say('`refit openapi` prints all of this as an OpenAPI document (3.1), and a daemon answers with it at `/v1/openapi.json`.')

const operations = Object.entries(document.paths).flatMap(([path, item]) =>
  ['get', 'put', 'post', 'delete'].filter((method) => item[method]).map((method) => ({ path, method, ...item[method] })),
)
const capital = (word) => word[0].toUpperCase() + word.slice(1)
for (const tag of document.tags) {
  say(`## ${capital(tag.name)}`)
  say(tag.description)
  for (const it of operations.filter((it) => it.tags[0] === tag.name)) {
    say(`### \`${it.method.toUpperCase()} ${it.path}\``)
    say(`${prose(it.summary)}.${it.description ? ` ${prose(it.description)}` : ''}`)
    const places = { path: 'in the path', query: 'in the query', header: 'header' }
    if (it.parameters?.length > 0) {
      say('| parameter | | |', '| --- | --- | --- |', ...it.parameters.map((one) => `| \`${one.name}\` | ${places[one.in]}, ${type(one.schema)}${one.required ? '' : ', optional'} | ${cell(one.description)} |`))
    }
    const content = Object.entries(it.requestBody?.content ?? {})
    if (content.length > 0) say(`Body: ${content.map(([kind, { schema }]) => (schema?.$ref ? `${type(schema)} as \`${kind}\`` : `\`${kind}\``)).join(', or ')}.`)
    const answers = Object.entries(it.responses).map(([status, answer]) => {
      const bodies = Object.entries(answer.content ?? {}).filter(([kind]) => kind !== 'application/problem+json')
      const told = bodies.map(([kind, { schema }]) => (schema?.$ref ? `${type(schema)}${kind === 'application/json' ? '' : ` as \`${kind}\``}` : `\`${kind}\``))
      return `| ${status} | ${told.join(', ')} | ${cell(answer.description)} |`
    })
    say('| status | body | |', '| --- | --- | --- |', ...answers)
  }
}

say('## What bodies are made of')
say('Fields may come in later versions; those that are here keep their meaning.')
for (const [name, schema] of Object.entries(schemas)) {
  say(`<a id="schema.${name}"></a>`, '', `### ${name}`)
  if (described(schema)) say(prose(described(schema)))
  if (schema.enum) {
    say(type(schema))
  } else if (schema.oneOf) {
    // One shape for each value of the field that tells them apart.
    for (const one of schema.oneOf) {
      const list = fields(one)
      const tag = list.find((it) => it.schema.enum?.length === 1)
      say(`\`${tag?.name}\`: \`${tag?.schema.enum[0]}\`${one.description ? `. ${prose(one.description)}` : ''}`)
      const others = list.filter((it) => it !== tag)
      if (others.length > 0) say('| field | type | |', '| --- | --- | --- |', ...rows(others))
    }
  } else if (fields(schema).length > 0) {
    say('| field | type | |', '| --- | --- | --- |', ...rows(fields(schema)))
  } else {
    say(type(schema))
  }
}

const page = out.join('\n').trimEnd() + '\n'
const file = path.join(docs, 'http.md')
if (process.argv.includes('--check')) {
  if (readFileSync(file, 'utf8') !== page) {
    console.error('error: docs/http.md is not what `refit openapi` says\n\nhint: `REFIT=../target/debug/refit npm run http`, in docs, writes it anew')
    process.exit(1)
  }
} else {
  writeFileSync(file, page)
}
