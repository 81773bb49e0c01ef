// Writes commands.md from what the program says of itself: `REFIT=/path/to/refit npm run commands`. `--check` writes nothing, and
// fails where the page is not what that program says.

import { execFileSync } from 'node:child_process'
import { readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { docs } from '../lib/outside.mjs'

const program = process.env.REFIT
if (!program) {
  console.error('error: no program is named\n\nhint: build one (`cargo build --package refit`), and `REFIT=../target/debug/refit npm run commands`')
  process.exit(2)
}

/** `--help` of a command, in its parts. Without our environment: help shows the variables that it would read. */
function help(words) {
  const text = execFileSync(program, [...words, '--help'], { env: {}, encoding: 'utf8' })
  const parts = { about: [], after: [], usage: '' }
  let list = parts.about
  for (const line of text.split('\n')) {
    const heading = /^(Usage|Commands|Arguments|Options):\s*(.*)$/.exec(line)
    if (heading) {
      list = parts[heading[1]] = []
      if (heading[1] === 'Usage') parts.usage = heading[2]
    } else if (line.startsWith('  ')) {
      const entry = /^ {2,}(\S(?:.*?\S)?)(?: {2,}(.*))?$/.exec(line)
      list.push({ name: entry[1], says: entry[2] ?? '' })
    } else if (line !== '') {
      // What stands at the left edge behind a list is for all of it.
      (list === parts.about ? parts.about : parts.after).push(line)
    }
  }
  return parts
}

const cell = (text) => text.replaceAll('|', '\\|').replace(/\[env: (\w+)=\]/, '[env: $1]')
// Outside of quotes an angle bracket would begin HTML.
const prose = (text) => text.split('`').map((part, at) => (at % 2 === 0 ? part.replaceAll('<', '&lt;') : part)).join('`')
const table = (title, entries) => [`| ${title} | |`, '| --- | --- |', ...entries.map(({ name, says }) => `| \`${cell(name)}\` | ${cell(prose(says))} |`)]

const top = help([])
const everywhere = new Set(top.Options.map(({ name }) => name))
const out = []
const say = (...lines) => out.push(...lines, '')

say('<!-- Made from `refit --help` by docs/.vitepress/scripts/commands.mjs: `REFIT=/path/to/refit npm run commands`, in docs. -->')
say('# Command line')
say(`${top.about.join(' ')}. stdout is data, stderr is everything else. [operating.md](operating.md) shows the commands at work.`)
say('```', `${top.usage}`, '```')
say(...table('option, with every command', top.Options))
say(...top.after.map(prose))

const commands = ({ Commands = [] }) => Commands.filter(({ name }) => name !== 'help')
function tell(words) {
  const found = help(words)
  const title = ['refit', ...words].join(' ')
  say(`${'#'.repeat(Math.min(words.length + 1, 3))} \`${title}\``)
  say(prose(found.about.join(' ')))
  const below = commands(found)
  if (below.length > 0) {
    say(...table('command', below.map(({ name, says }) => ({ name: `${title} ${name}`, says }))))
  } else {
    say('```', found.usage, '```')
  }
  if (found.Arguments) say(...table('argument', found.Arguments))
  const own = found.Options.filter(({ name }) => !everywhere.has(name))
  if (own.length > 0 && below.length === 0) say(...table('option', own))
  for (const { name } of below) tell([...words, name])
}
for (const { name } of commands(top)) tell([name])

const page = out.join('\n').trimEnd() + '\n'
const file = path.join(docs, 'commands.md')
if (process.argv.includes('--check')) {
  if (readFileSync(file, 'utf8') !== page) {
    console.error(`error: docs/commands.md is not what \`${program} --help\` says\n\nhint: \`npm run commands\`, in docs, writes it anew`)
    process.exit(1)
  }
} else {
  writeFileSync(file, page)
}
