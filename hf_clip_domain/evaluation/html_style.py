"""How the page of a report looks, on top of what all pages share."""

STYLE = """
:root{--cb:#8a97a3}.cb{--c:var(--cb)}
body{max-width:1120px;padding:2.5rem 1.25rem 5rem;font-size:1rem;line-height:1.55}
header h1{font-size:clamp(1.6rem,4vw,2.3rem);line-height:1.2;font-weight:650;letter-spacing:-.015em;text-wrap:balance}
header>p{color:var(--soft);max-width:70ch}header>.verdict{color:var(--ink);font-size:1.15rem;margin:1.1rem 0 1.3rem}
nav{display:flex;flex-wrap:wrap;gap:.2rem 1.1rem;margin:2rem 0 .5rem;padding:.7rem 0;border-block:1px solid var(--line);
font-size:.9rem}a{color:var(--c0);text-decoration:none}a:hover,a:focus-visible{text-decoration:underline}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(13.5rem,45%),1fr));gap:.9rem;margin:0}
.tiles div{background:var(--card);border-radius:.7rem;padding:.9rem 1.1rem;font-variant-numeric:tabular-nums}
.tiles dt{font-size:.85rem}.tiles dd{margin:0;font-size:.85rem;color:var(--soft)}
.tiles dt+dd{font-size:2.3rem;font-weight:600;line-height:1.25;letter-spacing:-.02em;color:var(--ink)}
.tiles dt+dd small{font-size:1.1rem;font-weight:400;color:var(--soft)}
.tiles .up{color:var(--c2)}.tiles .down{color:var(--c1)}
main section{background:none;border-radius:0;padding:0;margin-top:3.2rem}
h2{font-size:1.4rem;font-weight:620;letter-spacing:-.01em;margin:0 0 .9rem}
h3{font-size:1.05rem;font-weight:600;margin:2rem 0 .6rem}h4{font-size:.95rem;font-weight:600;margin:1.4rem 0 .6rem}
h3 .soft,h4 .soft{font-weight:400;font-size:.88rem;margin-left:.5rem}
p.soft{font-size:.85rem;max-width:75ch}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,20.5rem),1fr));gap:.9rem;margin:.6rem 0 1.2rem}
.charts figure{padding:.9rem 1.1rem;max-width:42rem}figcaption{font-size:.92rem}.ink{fill:var(--ink)}
.legend li::before{content:"";display:inline-block;width:.7em;height:.7em;border-radius:50%;margin-right:.4em;
background:var(--c)}
.wide{overflow-x:auto;margin:.6rem 0}table{border-collapse:collapse;font-variant-numeric:tabular-nums}
.figures{width:100%;background:var(--card);border-radius:.7rem;font-size:.92rem}
.figures th,.figures td{padding:.42rem .8rem;text-align:right;vertical-align:top}
.figures thead th{color:var(--soft);font-weight:400;font-size:.82rem}.figures thead th[colspan]{text-align:center;
color:var(--ink);font-weight:600;padding-top:.7rem}
.figures tbody th{text-align:left;font-weight:400}.figures tbody tr{border-top:1px solid var(--line)}
.figures small{display:block;color:var(--soft);font-size:.76rem;font-weight:400;white-space:nowrap}
.real{font-weight:650}.chosen{background:color-mix(in srgb,var(--c2) 12%,transparent)}
.matrix{font-size:.8rem}.matrix td,.matrix th{padding:.25rem .45rem;text-align:center;font-weight:400}
.matrix td.right,.matrix td.wrong{min-width:2.2rem;border:1px solid var(--back);background:var(--card)}
.matrix td.right{background:color-mix(in srgb,var(--c0) calc(.7*var(--share,0%)),var(--card))}
.matrix td.wrong{background:color-mix(in srgb,var(--c1) calc(.7*var(--share,0%)),var(--card))}
.matrix th[scope=row]{text-align:right;color:var(--soft);max-width:12rem}
.matrix th[scope=col]{vertical-align:bottom;color:var(--soft)}
.matrix th[scope=col] span{writing-mode:vertical-rl;transform:rotate(180deg);max-height:11rem;text-align:left}
.texts td,.texts th{padding:.35rem .7rem .35rem 0;text-align:left;vertical-align:top;border-top:1px solid var(--line);
font-size:.88rem}details{margin:1rem 0}summary{cursor:pointer;font-weight:600}
.strip{display:grid;grid-template-columns:repeat(auto-fill,minmax(10rem,1fr));gap:.8rem}
.strip figure{padding:.7rem}.strip figcaption{display:flex;flex-direction:column;font-weight:400;font-size:.8rem;
margin-top:.45rem}
img,.none{display:block;margin:0 auto;max-width:100%;height:auto;border-radius:.3rem}
.strip img,.strip .none,.pair img,.pair .none{width:100%;height:8.5rem;object-fit:contain}
.none{display:grid;place-items:center;color:var(--soft);font-size:.8rem;border:1px dashed var(--line)}
.cases{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,20.5rem),1fr));gap:.9rem}
article{background:var(--card);border-radius:.7rem;padding:.8rem;font-size:.85rem;font-variant-numeric:tabular-nums}
article header{margin-bottom:.6rem}.pair{display:grid;grid-template-columns:1fr 1fr;gap:.8rem}
article figure{background:none;padding:0;min-width:0}article figcaption{font-weight:400;font-size:.8rem;margin-top:.45rem}
.role{display:flex;justify-content:space-between;border-top:3px solid var(--c2);padding-top:.25rem;font-weight:400}
.other .role{border-color:var(--c1)}.best .other .role{border-color:var(--cb)}
q{display:-webkit-box;-webkit-box-orient:vertical;-webkit-line-clamp:6;overflow:hidden;quotes:none;margin:.3rem 0}
main dl{display:grid;grid-template-columns:max-content 1fr;gap:.25rem 1rem;font-size:.9rem}main dd{margin:0}
@media(max-width:560px){main dl{grid-template-columns:1fr}body{padding-top:1.25rem}}
@media print{body{max-width:none;background:#fff}article,figure,tr{break-inside:avoid}nav{display:none}}
""".strip()
