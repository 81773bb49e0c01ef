// The site: what is in its navigation, and how links are checked. The content is the Markdown beside this folder, which people
// read on GitHub too.

import { defineConfig } from 'vitepress'
import { check } from './lib/anchors.mjs'
import { links } from './lib/outside.mjs'

const sidebar = [
  {
    text: 'Running Refit',
    items: [
      { text: "Operator's guide", link: '/operating' },
      { text: 'Installing', link: '/packaging' },
      { text: 'Configuration', link: '/configuration' },
      { text: 'Logins, secrets, engines', link: '/credentials' },
      { text: 'Socket proxies', link: '/socket-proxies' },
      { text: 'Swap policies', link: '/policies' },
      { text: 'Security model', link: '/security' },
      { text: 'Command line', link: '/commands' },
      { text: 'HTTP interface', link: '/http' },
      { text: 'The report', link: '/report' },
      { text: 'Webhooks', link: '/webhooks' },
      { text: 'Notifications', link: '/notifications' },
      { text: 'History', link: '/history' },
      { text: 'Monitoring', link: '/observing' },
      { text: 'Automatic updates', link: '/watching' },
      { text: 'Approvals', link: '/approvals' },
      { text: 'Local development', link: '/local-development' },
    ],
  },
  {
    text: 'Coming from',
    items: [
      { text: 'Watchtower', link: '/from-watchtower' },
      { text: 'The original endpoint', link: '/from-the-endpoint' },
    ],
  },
  {
    text: 'Writing policies',
    items: [
      { text: 'Writing a policy', link: '/authors' },
      { text: 'Policy reference', link: '/policy-reference' },
      { text: 'What is promised', link: '/contract' },
      { text: 'The SDK for Rust', link: '/repository/sdk' },
      { text: 'Examples', link: '/repository/examples' },
      { text: 'Benchmarks', link: '/benchmarks' },
      { text: 'Policies that misbehave', link: '/hostile-guests' },
    ],
  },
  {
    text: 'How it is built',
    items: [
      { text: 'Architecture', link: '/repository/architecture' },
      { text: 'Decisions', link: '/decisions/README' },
      { text: 'Cases of recreating', link: '/recreate-cases' },
      { text: 'Contributing', link: '/repository/contributing' },
      { text: 'Changelog', link: '/repository/changelog' },
      { text: 'These pages', link: '/README' },
    ],
  },
]

export default defineConfig({
  title: 'Refit',
  description: 'Gives running containers a new image, under a policy that can be swapped while it runs',
  lang: 'en',
  // `/refit/` where the site is not at the top of its host.
  base: process.env.DOCS_BASE || '/',
  // What is no longer true is kept for those who look back, and is no part of the site.
  srcExclude: ['archive/**'],
  ignoreDeadLinks: false,
  markdown: {
    config: links,
    // As GitHub names headings, so that a link to one works on both.
    anchor: { slugify: (text) => text.trim().toLowerCase().replace(/[^\p{L}\p{N}\s_-]/gu, '').replace(/\s/g, '-') },
  },
  themeConfig: {
    nav: [
      { text: 'Operate', link: '/operating', activeMatch: '^/(operating|configuration|commands|http|security)' },
      { text: 'Write a policy', link: '/authors', activeMatch: '^/(authors|policy-reference|contract)' },
      { text: 'Architecture', link: '/repository/architecture' },
    ],
    sidebar,
    outline: [2, 3],
    search: { provider: 'local' },
  },
  buildEnd(site) {
    const seen = check(site.outDir, site.site.base)
    console.log(`${site.pages.length} pages, ${seen} links within the site, none dead`)
  },
})
