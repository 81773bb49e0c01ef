// Makes a page below repository/ of each Markdown file outside of docs/ that is part of the site: by inclusion, so that
// `npm run dev` shows a change at once. What it makes is not kept in git.

import { existsSync, mkdirSync, rmSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { docs, pages, root } from '../lib/outside.mjs'

const folder = path.join(docs, 'repository')
rmSync(folder, { recursive: true, force: true })
mkdirSync(folder)
for (const [source, name] of Object.entries(pages)) {
  if (!existsSync(path.join(root, source))) throw new Error(`there is no ${source}, which .vitepress/lib/outside.mjs lists`)
  writeFileSync(path.join(folder, `${name}.md`), `<!--@include: ../../${source}-->\n`)
}
