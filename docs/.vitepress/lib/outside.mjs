// What pages link to outside of docs/. On GitHub such a link leads to the file. On the site it leads to the same Markdown as a
// page below /repository/, or, for what is no Markdown, into the repository that DOCS_REPOSITORY names; without one the file's
// name stays, and leads nowhere. A file that is not there ends the build either way.

import { existsSync, statSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

export const docs = fileURLToPath(new URL('../..', import.meta.url))
export const root = path.join(docs, '..')

/** Where files that are no pages are shown, for example `https://github.com/ACME/refit/blob/main`. */
const repository = (process.env.DOCS_REPOSITORY ?? '').replace(/\/+$/, '')

/** Markdown outside of docs/ that is part of the site: from the top of the checkout, and its name below /repository/. */
export const pages = {
  'README.md': 'readme',
  'ARCHITECTURE.md': 'architecture',
  'CHANGELOG.md': 'changelog',
  'CONTRIBUTING.md': 'contributing',
  'plugin/sdk/README.md': 'sdk',
  'plugin/watchtower/README.md': 'watchtower',
  'plugin/examples/README.md': 'examples',
  'wit/released/README.md': 'released-contracts',
}

const sources = Object.fromEntries(Object.entries(pages).map(([source, name]) => [`repository/${name}.md`, source]))

/** For markdown-it: each relative link that leaves docs/, or is in a page from outside, leads where it should. */
export function links(md) {
  md.core.ruler.push('links-to-outside', (state) => {
    const page = state.env.relativePath
    if (page === undefined) return
    for (const block of state.tokens) {
      const open = []
      for (const token of block.children ?? []) {
        if (token.type === 'link_open') {
          open.push(rewrite(token, page))
        } else if (token.type === 'link_close' && open.pop()) {
          token.tag = 'span'
        }
      }
    }
  })
}

/** Answers whether it is a link no more. */
function rewrite(token, page) {
  const href = token.attrGet('href')
  const [, target, fragment] = /^([^#]*)(#.*)?$/.exec(href)
  if (target === '' || target.startsWith('/') || /^[a-z][a-z+.-]*:/i.test(target)) return false
  const source = sources[page] ?? path.join('docs', page)
  const file = path.join(path.dirname(source), decodeURIComponent(target))
  const inside = path.relative('docs', file)
  const leaves = inside.startsWith('..')
  if (!leaves && sources[page] === undefined) return false

  const there = path.join(root, file)
  if (!existsSync(there)) throw new Error(`${source}: dead link to ${href}: there is no ${file}`)
  const markdown = statSync(there).isDirectory() ? path.join(file, 'README.md') : file
  if (!leaves) {
    token.attrSet('href', `/${inside}${fragment ?? ''}`)
    return false
  }
  if (pages[markdown] !== undefined) {
    token.attrSet('href', `/repository/${pages[markdown]}.md${fragment ?? ''}`)
    return false
  }
  if (repository !== '') {
    token.attrSet('href', `${repository}/${file}${fragment ?? ''}`)
    return false
  }
  token.tag = 'span'
  token.attrs = [['title', `${file.replace(/\/$/, '')} in the repository`]]
  return true
}
