// VitePress finds links to pages that are not there, and no link to a heading that is not. This does, over what was built.

import { readdirSync, readFileSync } from 'node:fs'
import path from 'node:path'

const texts = { '&amp;': '&', '&lt;': '<', '&gt;': '>', '&quot;': '"', '&#39;': "'" }
const text = (html) => html.replace(/&(amp|lt|gt|quot|#39);/g, (entity) => texts[entity])

/** Throws where a link leads to no page, or to no `id` on it. Answers how many it looked at. */
export function check(folder, base) {
  const built = new Map()
  for (const file of readdirSync(folder, { recursive: true })) {
    if (!file.endsWith('.html')) continue
    const html = readFileSync(path.join(folder, file), 'utf8')
    const all = (attribute) => [...html.matchAll(new RegExp(`<[a-z][^>]*?\\s${attribute}="([^"]*)"`, 'g'))].map((it) => text(it[1]))
    const anchors = [...html.matchAll(/<a\s[^>]*?href="([^"]*)"/g)].map((it) => text(it[1]))
    built.set('/' + file.split(path.sep).join('/'), { ids: new Set(all('id')), anchors })
  }
  const dead = []
  let seen = 0
  for (const [page, { anchors }] of built) {
    for (const href of anchors) {
      const url = new URL(href, `http://site${base.replace(/\/$/, '')}${page}`)
      if (url.origin !== 'http://site') continue
      seen += 1
      let target = decodeURIComponent(url.pathname).replace(base, '/')
      if (target.endsWith('/')) target += 'index.html'
      const id = decodeURIComponent(url.hash.slice(1))
      const there = built.get(target)
      if (there === undefined || (id !== '' && !there.ids.has(id))) dead.push(`${page}: ${href}`)
    }
  }
  if (dead.length > 0) throw new Error(`dead links:\n${[...new Set(dead)].join('\n')}`)
  return seen
}
